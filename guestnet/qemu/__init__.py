"""NICs for a QEMU, or another VMM, without libvirt: taps as fds, with the care that a libvirt guest gets.

``nic`` is the whole of it for a program of your own::

    import subprocess

    from guestnet.qemu import nic

    with nic("ens3.11", queues=4) as made:
        subprocess.run(["qemu-system-x86_64", *made.arguments], pass_fds=made.pass_fds)

The modules beside it are the verbs of ``guestnet qemu`` and ``guestnet exec``.
"""

from guestnet.qemu.nics import OpenNic, Options, nic, opened

__all__ = ["OpenNic", "Options", "nic", "opened"]
