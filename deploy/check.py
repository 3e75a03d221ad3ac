#!/usr/bin/env python3
"""Holds the chart and the manifests to the schemas of Kubernetes, offline.

usage: deploy/check.py [--write] [--schemas FOLDER...]

  --write     renders deploy/kubernetes anew; without it the files have to be what the chart renders
  --schemas   more folders of packages kubernetes-validate, each with other versions of Kubernetes

The chart is rendered by Helm's own engine (package helm-python-sdk), and each object validated strictly, unknown fields are
errors (package kubernetes-validate, which has the schemas in it). Objects whose kinds are not Kubernetes' own (VolumeSnapshotClass,
ServiceMonitor) have no schema there and are only counted.
"""

import argparse
import glob
import json
import os
import sys

import jsonschema
import kubernetes_validate
import yaml
from helm_python import Chart, HelmValuesError, lint

HERE = os.path.dirname(os.path.abspath(__file__))
# The oldest version that the objects are for, and the newest there are schemas of.
OLDEST = "1.20"
# Without what Kubernetes 1.20 does not know.
FOR_OLDEST = {"driver": {"seLinuxMount": False}}
# All that can be switched on.
EVERYTHING = {
    "node": {"mode": "pod", "volumesMax": 0},
    "topology": {"topology.berth.io/fabric": "east"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "imagePullSecrets": [{"name": "registry"}],
    "customLabels": {"team": "storage"},
    "controller": {
        "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
}
# What the schema of the values has to refuse.
WRONG = [
    {"node": {"mode": "deamonset"}},
    {"driver": {"name": "a_b"}},
    {"kubeletDir": "var/lib/kubelet"},
    {"storageClasses": [{"name": "x", "parameters": {"tenant": "/root"}}]},
    {"storageClases": []},
]
FOREIGN = {"VolumeSnapshotClass", "ServiceMonitor"}


class Schemas:
    """Schemas of one version of Kubernetes."""

    def __init__(self, folder):
        self.folder = folder
        self.version = os.path.basename(folder).split("-")[0].lstrip("v")

    def check(self, thing):
        if self.folder.startswith(os.path.dirname(kubernetes_validate.__file__)):
            kubernetes_validate.validate(thing, self.version, strict=True)
            return
        group, _, version = thing["apiVersion"].rpartition("/")
        name = "-".join(part for part in [thing["kind"], group.split(".")[0], version] if part).lower()
        path = os.path.join(self.folder, name + ".json")
        with open(path, encoding="utf-8") as file:
            schema = json.load(file)
        resolver = jsonschema.RefResolver("file://" + self.folder + "/", schema)
        jsonschema.Draft4Validator(schema, resolver=resolver).validate(thing)


def found(folders):
    """The strict schemas of the oldest version wanted, if there, and of the newest."""
    folders = [os.path.dirname(kubernetes_validate.__file__), *folders]
    all_of = {}
    for folder in folders:
        for path in glob.glob(os.path.join(folder, "**", "v*-local-strict"), recursive=True):
            schemas = Schemas(path)
            all_of[tuple(map(int, schemas.version.split(".")))] = schemas
    oldest = [schemas for version, schemas in all_of.items() if "%d.%d" % version[:2] == OLDEST]
    return oldest, all_of[max(all_of)]


def render(chart, values):
    rendered = chart.render(values, name="berth-csi", namespace="kube-system", is_install=True)
    objects = []
    for path, text in sorted(rendered.items()):
        if path.endswith(".yaml"):
            objects += [thing for thing in yaml.safe_load_all(text) if thing]
    return objects


def check(what, objects, schemas):
    kinds = []
    for thing in objects:
        kinds.append(thing["kind"])
        if thing["kind"] in FOREIGN:
            continue
        try:
            schemas.check(thing)
        except jsonschema.ValidationError as error:
            where = "/".join(map(str, error.absolute_path))
            sys.exit(f"{what}: {thing['kind']} {thing['metadata']['name']}: {where}: {error.message} (Kubernetes {schemas.version})")
    own = sum(kind not in FOREIGN for kind in kinds)
    print(f"{what}: {own} objects are valid for Kubernetes {schemas.version}, {len(kinds) - own} of other kinds")
    if own == 0:
        sys.exit(f"{what}: nothing to validate")


def sees_mistakes(schemas):
    """A check that cannot fail is worth nothing."""
    for wrong in [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"container": []}},
        {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "x"}, "spec": {"attachRequired": "yes"}},
    ]:
        try:
            schemas.check(wrong)
        except jsonschema.ValidationError:
            continue
        sys.exit(f"the schemas of {schemas.version} take {wrong}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--schemas", nargs="*", default=[])
    arguments = parser.parse_args()
    oldest, newest = found(arguments.schemas)
    if not oldest:
        sys.exit(f"no schemas of Kubernetes {OLDEST}: --schemas with kubernetes-validate {OLDEST}")
    chart_folder = os.path.join(HERE, "chart")
    findings = lint(chart_folder, strict=True, kube_version="1.26.0")
    messages = [m for m in findings.get("messages", []) if "icon" not in str(m)]
    if messages:
        sys.exit(f"helm lint: {messages}")
    chart = Chart.load(chart_folder)
    for values in WRONG:
        try:
            chart.validate_schema(values)
        except HelmValuesError:
            continue
        sys.exit(f"the chart takes {values}")
    variants = {"default": {}, "pod": {"node": {"mode": "pod"}}, "everything": EVERYTHING}
    for schemas in [*oldest, newest]:
        sees_mistakes(schemas)
        for name, values in variants.items():
            chart.validate_schema(values)
            if schemas is not newest:
                values = {**values, **FOR_OLDEST}
            check(f"chart, {name}", render(chart, values), schemas)
        for path in sorted(glob.glob(os.path.join(HERE, "2016", "*.yaml"))):
            with open(path, encoding="utf-8") as file:
                check(os.path.relpath(path, HERE), [thing for thing in yaml.safe_load_all(file) if thing], schemas)
    for name in ["default", "pod"]:
        path = os.path.join(HERE, "kubernetes", {"default": "host.yaml", "pod": "pod.yaml"}[name])
        head = f"# Rendered from the chart by deploy/check --write, node.mode={'host' if name == 'default' else 'pod'}. Do not edit.\n"
        text = head + "".join("---\n" + yaml.safe_dump(thing, sort_keys=False) for thing in render(chart, variants[name]))
        if arguments.write:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        with open(path, encoding="utf-8") as file:
            if file.read() != text:
                sys.exit(f"{os.path.relpath(path, HERE)} is not what the chart renders: deploy/check --write")
    print("done")


if __name__ == "__main__":
    main()
