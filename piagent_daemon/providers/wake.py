"""Wake-on-LAN: the magic packet that starts a sleeping machine.

Source: AMD, "Magic Packet Technology", 1995: six bytes 0xFF, then sixteen times the MAC address, here over UDP.
"""

import logging
import socket

from piagent_daemon.providers.config import Wake

log = logging.getLogger("piagent.wake")

DISCARD_PORT = 9


def send(target: Wake) -> None:
    """Send the packet once, without waiting; where the network does not take it, that is logged."""
    host, _, port = target.address.partition(":")
    packet = b"\xff" * 6 + bytes.fromhex(target.mac) * 16
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            out.sendto(packet, (host, int(port or DISCARD_PORT)))
    except OSError as error:
        log.warning("no magic packet went to %s: %s", target.address, error)
