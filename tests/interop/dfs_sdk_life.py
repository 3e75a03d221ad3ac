#!/usr/bin/env python3
"""Leads a volume's whole life on a fabric with dfs_sdk, the vendor's own client, as it is on PyPI.

usage: dfs_sdk_life.py HOST API_VERSION http|https SW_VERSION INITIATOR SCHEMA_FILE

Ends with "done" and 0 when every step did what it should.
"""

import collections
import collections.abc
import sys
import uuid

# The client was written for Python before 3.10.
collections.Mapping = collections.abc.Mapping

import dfs_sdk  # noqa: E402  (after the line above)
from dfs_sdk import exceptions  # noqa: E402

HOST, API, SCHEME, SW_VERSION, INITIATOR, SCHEMA = sys.argv[1:7]
NEWER = tuple(int(part) for part in SW_VERSION.split(".")) >= (3, 3, 0, 0)


def step(text):
    print(text, flush=True)


def same(found, wanted):
    if found != wanted:
        raise AssertionError("{!r} is not {!r}".format(found, wanted))


def refused(kind, act):
    try:
        act()
    except kind:
        return
    raise AssertionError("{} was expected".format(kind.__name__))


api = dfs_sdk.get_api(
    HOST, "admin", "password", API, tenant="/root", secure=SCHEME == "https",
    schema_loc=SCHEMA, refresh=True, disable_log=True, timeout=30,
)
step("login")
system = api.system.get()
same(system["sw_version"], SW_VERSION)
same(api.healthcheck(), True)
refused(
    exceptions.ApiAuthError,
    lambda: dfs_sdk.get_api(
        HOST, "admin", "not-the-password", API, secure=SCHEME == "https",
        schema_loc=SCHEMA, disable_log=True, retry_connection_type="random", timeout=5,
    ),
)

step("tenants, pools")
same(api.tenants.list()[0]["name"], "root")
refused(exceptions.ApiConflictError, lambda: api.tenants.create(name="root"))
same(len(api.access_network_ip_pools.get("default")["network_paths"]), 2)

step("template: create and use")
template = api.app_templates.create(
    name="life", descr="made by a test",
    storage_templates=[{
        "name": "storage-1",
        "volume_templates": [{"name": "volume-1", "size": 2, "replica_count": 2}],
    }],
)
same(api.app_templates.get("life")["storage_templates"][0]["volume_templates"][0]["size"], 2)
used = api.app_instances.create(name="from-template", app_template={"path": template["path"]})
same(used["app_template"]["path"], "/app_templates/life")
same(used["storage_instances"][0]["volumes"][0]["size"], 2)
two = api.app_instances.create(name="two-volumes", app_template={"path": "/app_templates/database"})
same([v["name"] for v in two["storage_instances"][0]["volumes"]], ["data", "log"])

step("app instance, storage instance, volume")
ai = api.app_instances.create(name="life-1", create_mode="kubernetes")
refused(exceptions.ApiConflictError, lambda: api.app_instances.create(name="life-1"))
refused(exceptions.ApiValidationFailedError, lambda: api.app_instances.create(name="x"))
refused(exceptions.ApiNotFoundError, lambda: api.app_instances.get("none-such"))
si = ai.storage_instances.create(name="storage-1")
vol = si.volumes.create(name="volume-1", size=1, replica_count=1)
same((vol["size"], vol["op_state"]), (1, "available"))
same(len(si["access"]["ips"]), 2)
ai = api.app_instances.get("life-1")
same(ai["storage_instances"][0]["volumes"][0]["uuid"], vol["uuid"])

step("access list")
initiator = api.initiators.create(id=INITIATOR, name="node-1")
same(initiator["tenant"], "/root")
si.acl_policy.initiators.add(initiator)
refused(exceptions.ApiConflictError, lambda: si.acl_policy.initiators.add(initiator))
same([i["id"] for i in si.acl_policy.initiators.list()], [INITIATOR])
si.acl_policy.initiators.remove(initiator)
same(si.acl_policy.initiators.list(), [])
si.acl_policy.set(initiators=[{"path": initiator["path"]}])
group = api.initiator_groups.create(name="group-1", members=[{"path": initiator["path"]}])
si.acl_policy.initiator_groups.add(group)
same(si.reload()["acl_policy"]["initiator_groups"][0]["path"], "/initiator_groups/group-1")
refused(exceptions.ApiInvalidRequestError, initiator.delete)

step("CHAP")
si.auth.set(type="chap", target_user_name="node-user", target_pswd="node-secret-1")
auth = si.reload()["auth"]
same((auth["type"], auth["target_user_name"], auth["target_pswd"]), ("chap", "node-user", "(hidden)"))

step("performance policy")
policy = vol.performance_policy.create(total_iops_max=1000, total_bandwidth_max=2048)
same(policy["total_iops_max"], 1000)
same(vol.reload()["performance_policy"]["total_bandwidth_max"], 2048)
vol.performance_policy.set(total_iops_max=2000)
same(vol.performance_policy.get()["total_iops_max"], 2000)

step("snapshot")
name = str(uuid.uuid4())
snapshot = vol.snapshots.create(uuid=name)
same(snapshot["uuid"], name)
try:
    vol.snapshots.create(uuid=name)
    raise AssertionError("a snapshot with a uuid that is taken")
except exceptions.ApiInvalidRequestError as error:
    same(error.resp_data["code"], 15)
stamp = snapshot["utc_ts"]
same(vol.snapshots.get(stamp)["op_state"] in ("available", "creating"), True)
whole = api.app_instances.get("life-1").snapshots.create()

step("clone of the volume, of the snapshot, of the app instance")
for number, member in enumerate(
    [
        {"clone_volume_src": {"path": vol["path"]}},
        {"clone_snapshot_src": {"path": snapshot["path"]}},
        {"clone_src": {"path": ai["path"]}},
    ]
):
    clone = api.app_instances.create(name="clone-{}".format(number), **member)
    made = clone["storage_instances"][0]["volumes"][0]
    same((made["name"], made["size"]), ("volume-1", 1))
    same(clone["storage_instances"][0]["acl_policy"]["initiators"], [])
    clone.set(admin_state="offline", force=True)
    clone.delete(force=True)

step("resize")
vol = vol.set(size=3)
same(vol["size"], 3)
refused(exceptions.ApiInvalidRequestError, lambda: vol.set(size=2))

step("restore")
refused(exceptions.ApiInvalidRequestError, lambda: vol.set(restore_point=stamp))
ai = api.app_instances.get("life-1")
ai.set(admin_state="offline", force=True)
same(ai.reload()["storage_instances"][0]["op_state"], "unavailable")
same(vol.set(restore_point=stamp)["size"], 1)
ai.set(restore_point=whole["utc_ts"])
ai.set(admin_state="online")

step("metadata")
ai.metadata.set(host="node-1", attached="yes")
ai.metadata.set(host="node-2")
data = ai.metadata.get()
same((data["host"], data["attached"]), ("node-2", "yes"))

step("lists, filters, pages")
for number in range(120):
    api.app_instances.create(name="page-{:03}".format(number))
wanted = sorted("page-{:03}".format(number) for number in range(120))
found = [one["name"] for one in api.app_instances.list(filter="match(name,page-.*)", limit=1000)]
same(sorted(found), wanted)
everything = [one["name"] for one in api.app_instances.list()]
if API == "v2.2":
    # The client asks for page after page.
    same(sorted(n for n in everything if n.startswith("page-")), wanted)
same([one["name"] for one in api.app_instances.list(filter="name=page-007")], ["page-007"])

step("metrics, events, capacity")
rows = api.metrics.io.iops_read.get(path="/system")
same([(row["entity_path"], row["tenant"]) for row in rows], [("/system", "/root")])
point = api.metrics.io.writes.latest.get(uuid=ai.id)[0]["point"]
same(sorted(point), ["time", "value"])
same(len(api.metrics.hw.cpu_usage.latest.get(path="/storage_nodes")), 3)
codes = [event["code"] for event in api.events.user.list(since="1h", limit=1000)]
same(codes.count("APP_INSTANCES_CREATE") >= 120, True)
same(api.system.get()["total_provisioned_capacity"] > 0, True)

if API == "v2.2" and NEWER:
    step("placement policies, overrides")
    same("default" in [p["name"] for p in api.placement_policies.list()], True)
    other = api.app_instances.create(
        name="overridden", app_template={"path": template["path"]},
        template_override={"storage_instances": {"storage-1": {"volumes": {"volume-1": {"size": "5"}}}}},
    )
    same(other["storage_instances"][0]["volumes"][0]["size"], 5)

step("delete")
vol.snapshots.get(stamp).delete()
same(vol.snapshots.list(), [])
for one in api.app_instances.list(limit=1000):
    one.set(admin_state="offline", force=True)
    same(one.delete(force=True)["id"], one["id"])
same(api.app_instances.list(), [])
group.delete()
initiator.delete()
api.app_templates.get("life").delete()
print("done")
