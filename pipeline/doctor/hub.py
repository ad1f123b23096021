"""The Hugging Face Hub: whether it answers, and takes the token."""

from __future__ import annotations

import os
from typing import Final

from pipeline.doctor.check import Check, failure, ok, warning
from pipeline.secrets import without_secrets
from pipeline.storage.retry import transient_types
from sewd_model.files import shown

TIMEOUT_S: Final = 10.0


def hub(is_needed: bool = False) -> Check:
    """One short request to the Hub, with the user's endpoint, token and mode.

    Args:
        is_needed: the model is on the Hub, so that a run needs it.
    """
    import httpx2  # noqa: PLC0415 - the client of huggingface_hub
    from huggingface_hub import constants, get_session, get_token  # noqa: PLC0415 - takes a while

    # The variable as it is now, as `pipeline.storage.clients` reads it: the client takes it when it is loaded.
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    place = shown(endpoint)
    wrong = failure if is_needed else warning
    if constants.HF_HUB_OFFLINE:
        return ok("hub", "offline mode (HF_HUB_OFFLINE): checkpoints are taken from the cache only")
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    errors: tuple[type[BaseException], ...] = (*transient_types(), httpx2.InvalidURL)
    try:
        answer = get_session().get(f"{endpoint}/api/models?limit=1", headers=headers, timeout=TIMEOUT_S)
    except errors as error:
        return wrong(
            "hub",
            f"{place} does not answer: {without_secrets(str(error)) or type(error).__name__}",
            "check the network, the proxy and HF_ENDPOINT; without it, checkpoints are read from directories, buckets "
            "and the cache (HF_HUB_OFFLINE=1)",
        )
    if answer.status_code in (401, 403):
        return wrong("hub", f"{place} refuses the token", "log in again: hf auth login, or set HF_TOKEN")
    if answer.status_code >= 400:
        return wrong(
            "hub",
            f"{place} answers with status {answer.status_code}",
            "check HF_ENDPOINT and the proxy, or try again later",
        )
    return ok("hub", f"{place} answers{', with a token' if token else ', without a token'}")
