"""The only door to netlink, network namespaces, character devices and sysfs."""
