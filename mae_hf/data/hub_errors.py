"""What a failed request to the Hub means, in words, and what to do about it."""

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

_LOG_IN = "log in (`hf auth login`; HF_TOKEN takes precedence)"


def explain_hub_error(error: BaseException, repo: str, writes: bool = False) -> tuple[str, str] | None:
    """Return the cause of a failed request for `repo`, and what to do; None if the Hub is not the cause.

    `repo` is user/name of a model, or datasets/user/name. `writes` is True for requests of an upload.
    """
    chain = [error]
    while earlier := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(earlier)
    response = next((found for each in chain if (found := getattr(each, "response", None)) is not None), None)
    of_aiohttp = next((found for each in chain if isinstance(found := getattr(each, "status", None), int)), None)
    status = response.status_code if response is not None else of_aiohttp
    if status is None:
        return _explain_silence(chain)
    words = next((text for each in chain if (text := getattr(each, "server_message", None))), None)
    cause = " ".join(f"{status} {words or getattr(response, 'reason_phrase', '')}".split())[:200]
    if status >= 500:
        return cause, "the Hub failed: wait a little"
    if status == 429:
        return cause, "the Hub refuses further requests for now: wait some minutes"
    if writes and status == 403:
        fix = "use a token that may write there (`hf auth login`), or choose another repository (--hub.repo_id)"
    elif writes and status == 401:
        fix = f"{_LOG_IN} with a token that may write"
    elif status == 403 or any(isinstance(each, GatedRepoError) for each in chain):
        fix = f"accept its terms at {constants.ENDPOINT}/{repo}, and {_LOG_IN}"
    elif any(isinstance(each, RepositoryNotFoundError) for each in chain):
        fix = f"check the name; if it is private, {_LOG_IN}"
    elif status == 401:
        fix = _LOG_IN
    else:
        fix = "check the name and the revision" if status == 404 else "check HF_ENDPOINT and the name"
    return cause, fix


def _explain_silence(chain: list[BaseException]) -> tuple[str, str] | None:
    """Explain an error that came without an answer from the Hub."""
    cause = " ".join(str(chain[-1]).split())[:200] or type(chain[-1]).__name__
    for each in chain:
        if isinstance(each, OfflineModeIsEnabled):
            return "offline mode", "unset HF_HUB_OFFLINE"
        if isinstance(each, HFValidationError):
            return cause, "a name on the Hub is user/name"
        if type(each).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "aiohttp", "requests"):
            return f"{type(each).__name__}: {cause}", "check the network and HF_ENDPOINT"
    return None
