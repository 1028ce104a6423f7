"""kohya's module protocol, written once as a type."""

from networks import protocol
from networks.lora import LoRANetwork
from networks.network_protocol import Network

CALLS = {name for name in (*vars(Network), *Network.__annotations__) if not name.startswith("_")}


def test_the_own_network_has_every_call_of_the_protocol() -> None:
    assert [name for name in sorted(CALLS) if not hasattr(LoRANetwork, name)] == []


def test_what_every_run_asks_of_a_module_is_part_of_the_protocol() -> None:
    assert set(protocol.NEEDED) < CALLS
