"""Run on a host of the lab: a topology whose bringing up is ended, or fails, at each of its steps.

Prints as JSON what was found for each: nothing is to be done after another `up`, and nothing is left after a `down`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from guestnet.errors import GuestnetError
from guestnet.topology import deploy, document, takedown

PATHS = ("ip_forward", "conf/nic0/arp_ignore", "conf/all/send_redirects")


class MadeToFailError(GuestnetError):
    """What a step is made to fail with."""


def options(watch=None):
    return deploy.Options(uri="qemu:///system", node="n1", watch=watch)


def state():
    """Links, addresses, routes, namespaces, sysctls and what is kept, as they are now."""
    shown = []
    for words in (("link",), ("address",), ("route",), ("-6", "route"), ("netns",)):
        answer = json.loads(subprocess.run(["ip", "-j", *words], capture_output=True, check=True).stdout or "[]")
        for one in answer:
            for key in ("stats64", "operstate", "link_pointtopoint"):
                one.pop(key, None)
            for address in one.get("addr_info", ()):  # nic0 itself is young: its own address may still be checked
                address.pop("tentative", None)
        shown.append(answer)
    shown += [Path(f"/proc/sys/net/ipv4/{path}").read_text() for path in PATHS]
    shown.append(sorted(os.listdir("/run/guestnet/topology")) if os.path.isdir("/run/guestnet/topology") else [])
    shown.append(sorted(name for name in os.listdir("/dev") if name.startswith("tap")))
    shown.append(sorted(os.listdir("/run/netns")))
    return shown


def at(step, moment, act):
    """A watch that acts at one moment of one step."""
    count = 0

    def watch(when, _):
        nonlocal count
        if when == moment:
            count += 1
            if count == step:
                act()

    return watch


def killed(topology, watch):
    """Bring it up in a child that kills itself."""
    child = os.fork()
    if child == 0:
        try:
            deploy.up(topology, options(watch))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def fail():
    raise MadeToFailError("made to fail")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def main(path):
    topology = document.find(path)
    warm = deploy.up(topology, options())  # IPv6 of the links has been used once, whatever that changes for good
    takedown.down(topology.name, options())
    steps = len(warm.steps)
    before = state()
    found = {"steps": steps, "killed": 0, "failed": 0, "wrong": []}
    for step in range(1, steps + 1):
        for moment in ("begin", "end"):
            name = f"{moment} of {step}: {warm.steps[step - 1]}"
            if not killed(topology, at(step, moment, kill)):
                found["wrong"].append(f"was not killed at {name}")
            found["killed"] += 1
            if (step + (moment == "end")) % 2:  # every second one is taken down from where it was left
                after = deploy.up(topology, options())
                again = deploy.up(topology, options())
                if again.steps or any(row.state != "up" for row in after.rows):
                    found["wrong"].append(f"not whole after a kill at {name}")
            takedown.down(topology.name, options())
            if state() != before:
                found["wrong"].append(f"something is left after a kill at {name}")
            try:
                deploy.up(topology, options(at(step, moment, fail)))
                found["wrong"].append(f"did not fail at {name}")
            except MadeToFailError as error:
                found["failed"] += 1
                if getattr(error, "__notes__", None) or state() != before:
                    found["wrong"].append(f"not undone after a failure at {name}: {getattr(error, '__notes__', '')}")
                    takedown.down(topology.name, options())
    json.dump(found, sys.stdout)


main(sys.argv[1])
