"""The talk of two iolane processes under TLS, with the same certificates as QEMU's stream."""

from __future__ import annotations

import socket
import ssl

from iolane.engines.qemu.credentials import TlsCredentials
from iolane.errors import IolaneError


def secured(
    connection: socket.socket, credentials: TlsCredentials, *, server: bool, server_name: str = ""
) -> ssl.SSLSocket:
    """The connection with both ends proven: each has a certificate of the same authority, and the server's is
    for its name.

    Raises:
        IolaneError: the other side does not speak TLS, or can't prove who it is.
    """
    authority, certificate, key = credentials.files(server=server)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
        return context.wrap_socket(
            connection, server_side=server, server_hostname=None if server else server_name
        )
    except (OSError, ssl.SSLError) as error:
        connection.close()
        raise IolaneError(
            f"no encrypted link: {_words(error)}",
            remedy="both sides need --tls, and certificates of the same authority",
        ) from error


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return str(error.reason if isinstance(error, ssl.SSLError) and error.reason else error).lower()
