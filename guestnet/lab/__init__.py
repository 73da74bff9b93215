"""Two or more hosts on one machine, made of namespaces, each with its own libvirtd and tiny real guests."""

from guestnet.lab.guest import Guest
from guestnet.lab.lab import GuestStatus, Lab, LabPlan, LabStatus, NicStatus, NodeStatus, labs
from guestnet.lab.node import Node
from guestnet.lab.programs import Progress

__all__ = ["Guest", "GuestStatus", "Lab", "LabPlan", "LabStatus", "NicStatus", "Node", "NodeStatus", "Progress", "labs"]
