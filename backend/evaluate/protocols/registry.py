"""The table of protocols: a new one is a new file beside this one and one line here."""

from backend.errors import UserError
from backend.evaluate.protocols.base import Protocol
from backend.evaluate.protocols.counterfactual import CounterfactualProtocol
from backend.evaluate.protocols.detectors import DetectorsProtocol
from backend.evaluate.protocols.faithfulness import FaithfulnessProtocol
from backend.evaluate.protocols.paired import PairedProtocol
from backend.evaluate.protocols.trace_removal import TraceRemovalProtocol

PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol
    for protocol in (
        DetectorsProtocol,
        CounterfactualProtocol,
        TraceRemovalProtocol,
        FaithfulnessProtocol,
        PairedProtocol,
    )
}


def get_protocol(name: str) -> type[Protocol]:
    """Return a protocol by its name.

    Raises:
        UserError: There is none of this name.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise UserError(f"There is no protocol named {name}.", f"Choose one of: {', '.join(PROTOCOLS)}.") from None
