"""What a client believes of a server and shows it, and what a failed handshake means."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from shunter_work_pools.contracts.configuration import load
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.key_files import load_authorities, load_pair

_UNKNOWN_AUTHORITY = (
    "its certificate is of an authority that this machine does not know",
    "If it is your own: set SHUNTER_TLS_CA=FILE, with the authority's certificate in PEM (of a self-signed one, itself).",
)
_ANOTHER_NAME = (
    "its certificate is for another name",
    "Use a name that is in the certificate, or have one made that has this name (subjectAltName).",
)
#: X509_V_ERR_... of OpenSSL (x509_vfy.h) -> what is wrong, what to do.
_DISTRUST = {
    9: ("its certificate is not valid yet", "Compare the clocks: here it is {now}."),
    10: (
        "its certificate has expired",
        "Renew it on the server; or, if this clock is wrong, set it: here it is {now}.",
    ),
    18: _UNKNOWN_AUTHORITY,
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    62: _ANOTHER_NAME,
    64: _ANOTHER_NAME,
}
_SHOW_ONE = "Set SHUNTER_TLS_CERT and SHUNTER_TLS_KEY to this client's certificate and key (PEM)."
_SHOW_ANOTHER = (
    "Set SHUNTER_TLS_CERT and SHUNTER_TLS_KEY to a certificate of an authority that the server knows."
)
#: For servers that do not say it.
IF_IT_WANTS_ONE = (
    "If it wants a certificate of this client: SHUNTER_TLS_CERT and SHUNTER_TLS_KEY name one, of an authority that it "
    "knows and not expired."
)
#: Alerts by which a server says that it does not like this client (RFC 8446, 6.2), as OpenSSL names them.
_ALERTS = {
    "CERTIFICATE_REQUIRED": ("it wants a certificate of this client", _SHOW_ONE),
    "HANDSHAKE_FAILURE": ("it refuses the handshake; it may want a certificate of this client", _SHOW_ONE),
    "UNKNOWN_CA": ("it does not know the authority of this client's certificate", _SHOW_ANOTHER),
    "BAD_CERTIFICATE": ("it does not take this client's certificate", _SHOW_ANOTHER),
    "CERTIFICATE_UNKNOWN": ("it does not take this client's certificate", _SHOW_ANOTHER),
    "CERTIFICATE_EXPIRED": ("this client's certificate has expired", "Renew it: SHUNTER_TLS_CERT names it."),
    "CERTIFICATE_REVOKED": ("this client's certificate was revoked", _SHOW_ANOTHER),
    "PROTOCOL_VERSION": ("it speaks no version of TLS that this client speaks", "TLS 1.2 or 1.3 is wanted."),
}
_NO_TLS = (
    "what answers there does not speak TLS",
    "If the server has no certificate, its address begins with http://.",
)


def trust(scheme: str) -> ssl.SSLContext:
    """What a client goes by: the system's authorities, those of ``tls_ca``, and the certificate ``tls_cert``.

    Raises:
        InvalidInput: a file that is named cannot be used.
    """
    if scheme != "https":
        # Loading the certificate authorities takes 20 ms: not for a server that is spoken to in the clear.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    values = load()
    context = ssl.create_default_context()
    if values["tls_ca"]:
        load_authorities(context, values["tls_ca"], "tls_ca")
        # One that is listed by itself is believed, also where no authority stands behind it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if values["tls_cert"]:
        load_pair(context, values["tls_cert"], values["tls_key"], "tls_cert")
    elif values["tls_key"]:
        raise InvalidInput(
            "tls_key is set, and tls_cert is not", "Set SHUNTER_TLS_CERT to the certificate of the key."
        )
    return context


def handshake(exc: BaseException) -> tuple[str, str] | None:
    """What is wrong with the TLS of an exchange that failed, and what to do; None: it is something else."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLError | ssl.CertificateError):
            return _explained(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _explained(exc: ssl.SSLError) -> tuple[str, str]:
    if isinstance(exc, ssl.SSLCertVerificationError):
        now = datetime.now(UTC).isoformat(" ", "minutes")
        wrong, remedy = _DISTRUST.get(exc.verify_code, ("its certificate is not to be believed", ""))
        return f"{wrong} ({exc.verify_message})", remedy.format(now=now)
    reason = exc.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_MESSAGE"):
        return _NO_TLS
    if isinstance(exc, ssl.SSLEOFError):
        return "it hung up during the handshake", IF_IT_WANTS_ONE
    for alert, told in _ALERTS.items():
        if reason.endswith(alert):
            return told
    return f"TLS failed: {reason or exc}", ""
