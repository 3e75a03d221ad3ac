"""The targets, and the NBD servers that are compared on them."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse

INITIATOR = "iqn.2026-11.io.berth:bench"
DEADLINE_S = 30


def free_port():
    """A loopback port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(program, condition):
    """Waits until `condition` holds; the end of the program ends the wait."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if program.process.poll() is not None:
            raise RuntimeError(f"{program.name} has ended with {program.process.returncode}:\n{program.tail()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{program.name} is not ready within {DEADLINE_S} s:\n{program.tail()}")
        time.sleep(0.02)


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def accepts_unix(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


class Program:
    """A program that runs until `close` and never longer than the bench."""

    def __init__(self, name, command, folder, env=None):
        self.name = name
        self.log = os.path.join(folder, f"{name}.log")
        path = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            raise RuntimeError(f"{command[0]} is not there: run tests/setup")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                ["setpriv", "--pdeathsig", "KILL", path, *command[1:]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})},
            )
        self.pid = self.process.pid

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def tail(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-20:])


class PortalTarget:
    """berth's own target role with a RAM LUN."""

    title = "berth's own target (memory)"

    def __init__(self, folder, programs, size_mib):
        self.port = free_port()
        self.name = "iqn.2026-11.example:bench"
        self.lun = 0
        self.program = Program(
            "portal",
            [os.path.join(programs, "portal"), "--listen", f"127.0.0.1:{self.port}", "--target", self.name,
             "--lun", f"ram:{size_mib}M"],
            folder,
        )
        wait_for(self.program, lambda: accepts(self.port))

    def target_for(self, _digests):
        return self.name

    def close(self):
        self.program.close()


class TgtTarget:
    """Debian's tgt with a file in memory.

    Two targets serve the same file: tgt demands the digests that a target is set to, and QEMU has no data digest.
    """

    title = "Debian's tgt (file in memory), set to segments of 256 KiB"
    segment_bytes = 262144

    def __init__(self, folder, _programs, size_mib):
        self.port = free_port()
        self.lun = 1
        self.file = f"/dev/shm/berth-bench-{os.getpid()}"
        with open(self.file, "wb") as backing:
            for _ in range(size_mib):
                backing.write(os.urandom(1 << 20))
        self.env = {"TGT_IPC_SOCKET": os.path.join(folder, "tgt-control")}
        self.program = Program(
            "tgtd", ["tgtd", "-f", "-C", "0", "--iscsi", f"portal=127.0.0.1:{self.port}"], folder, self.env
        )
        try:
            wait_for(self.program, lambda: accepts(self.port))
            for tid, digest in ((1, "None"), (2, "CRC32C")):
                self._set_up(tid, digest)
        except Exception:
            self.close()
            raise

    def _set_up(self, tid, digest):
        self._admin("target", "new", tid, "-T", self._name(tid))
        self._admin("logicalunit", "new", tid, "--lun", "1", "-b", self.file)
        if self.segment_bytes:
            self._admin("target", "update", tid, "-n", "MaxRecvDataSegmentLength", "-v", str(self.segment_bytes))
        if digest != "None":
            self._admin("target", "update", tid, "-n", "HeaderDigest", "-v", digest)
            self._admin("target", "update", tid, "-n", "DataDigest", "-v", digest)
        self._admin("target", "bind", tid, "-I", "ALL")

    def _admin(self, mode, operation, tid, *more):
        tgtadm = shutil.which("tgtadm", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        subprocess.run(
            [tgtadm, "-C", "0", "--lld", "iscsi", "--op", operation, "--mode", mode, "--tid", str(tid), *more],
            env={**os.environ, **self.env}, check=True, timeout=DEADLINE_S,
        )

    @staticmethod
    def _name(tid):
        return f"iqn.2026-11.example:bench{tid}"

    def target_for(self, digests):
        return self._name(2 if digests else 1)

    def close(self):
        self.program.close()
        if os.path.exists(self.file):
            os.unlink(self.file)


class TgtInstalledTarget(TgtTarget):
    """As most people run it: it takes data in segments of 8 KiB, which is what costs a client most."""

    title = "Debian's tgt (file in memory) as installed, with segments of 8 KiB"
    segment_bytes = None


class QemuServer:
    """qemu-nbd over libiscsi."""

    def __init__(self, name, folder, _programs, target):
        self.name = name
        path = os.path.join(folder, f"{name}.sock")
        image = (
            f"driver=iscsi,transport=tcp,portal=127.0.0.1:{target.port},target={target.target_for(False)},"
            f"lun={target.lun},initiator-name={INITIATOR}-{name}"
        )
        self.program = Program(
            name,
            ["qemu-nbd", "-t", "-e", "8", "--cache=none", "-k", path, "--image-opts",
             f"driver=raw,file.{image.replace(',', ',file.')}"],
            folder,
        )
        self.pid = self.program.pid
        self.uri = f"nbd+unix:///?socket={path}"
        # The file is there before the server listens on it.
        wait_for(self.program, lambda: accepts_unix(path))

    def close(self):
        self.program.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=DEADLINE_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self.path)


class BerthServer:
    """berthd with one attachment."""

    def __init__(self, name, folder, programs, target, digests=False):
        self.name = name
        home = os.path.join(folder, name)
        os.mkdir(home)
        self.api = os.path.join(home, "api.sock")
        nbd = os.path.join(home, "nbd.sock")
        config = os.path.join(home, "berth.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f'[node]\nname = "{name}"\ninitiator_name = "{INITIATOR}-{name}"\nstate_dir = "{home}/state"\n'
                f'runtime_dir = "{home}/run"\n[api]\nsocket = "{self.api}"\n[nbd]\nsocket = "{nbd}"\n'
            )
        self.program = Program(name, [os.path.join(programs, "berthd"), "--config", config], folder)
        self.pid = self.program.pid
        wait_for(self.program, self._ready)
        word = "require" if digests else "off"
        body = {
            "source": {"iscsi": {
                "portals": [f"127.0.0.1:{target.port}"], "target": target.target_for(digests), "lun": target.lun,
            }},
            "device": "socket",
            "digests": {"header": word, "data": word},
        }
        status, text = self._request("PUT", "/v1/attachments/lun", body)
        if status not in (200, 201):
            raise RuntimeError(f"{name}: attach: status {status}: {text}\n{self.program.tail()}")
        self.uri = "nbd+unix:///lun?socket=" + urllib.parse.quote(nbd)

    def _request(self, method, path, body=None):
        connection = _UnixConnection(self.api)
        try:
            payload = json.dumps(body) if body is not None else None
            connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def _ready(self):
        try:
            return self._request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def close(self):
        self.program.close()


# What takes part: the base of all ratios first.
SERVERS = {
    "qemu": QemuServer,
    "berth": BerthServer,
    # Null control: the same again. What differs between these two is noise.
    "berth-b": BerthServer,
    "berth-dd": lambda *args: BerthServer(*args, digests=True),
    # For runs without berth, to see what the method itself does.
    "qemu-b": QemuServer,
}

TARGETS = {"portal": PortalTarget, "tgt": TgtTarget, "tgt-installed": TgtInstalledTarget}
