"""kohya's module protocol, written once as a type."""

import typing

from networks import protocol
from networks.lora import LoRANetwork
from networks.network_protocol import Network


def test_the_own_network_has_every_call_of_the_protocol() -> None:
    assert [name for name in typing.get_protocol_members(Network) if not hasattr(LoRANetwork, name)] == []


def test_what_every_run_asks_of_a_module_is_part_of_the_protocol() -> None:
    assert set(protocol.NEEDED) < typing.get_protocol_members(Network)
