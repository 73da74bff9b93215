"""Guests of libvirt and QEMU on the real network, by macvtap."""

__version__ = "0.1.0"
