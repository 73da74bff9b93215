"""What holds for a NIC whoever plugs it in: libvirt, or a QEMU without it."""

from difflib import get_close_matches

from guestnet.errors import UsageError
from guestnet.model import MODELS, QUEUES_MAX


def check_model(model: str, queues: int | None) -> None:
    """Raise UsageError for a model QEMU has not, for queues out of range, and for queues on a model without."""
    if model not in MODELS:
        near = get_close_matches(model, MODELS, n=2)
        raise UsageError(
            f"{model!r} is not a NIC model", hint=f"did you mean {near[0]}?" if near else f"one of {', '.join(MODELS)}"
        )
    if queues is None:
        return
    if not 1 <= queues <= QUEUES_MAX:
        raise UsageError(f"{queues} queues are not possible", hint=f"1 to {QUEUES_MAX}")
    if queues > 1 and not model.startswith("virtio"):
        raise UsageError(f"the model {model} has one queue", hint="leave --queues out, or use --model virtio")
