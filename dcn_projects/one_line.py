__all__ = ["one_line"]


def one_line(error: BaseException) -> str:
    """
    The message of an error without line breaks. Of a KeyError, which quotes its message, the
    message itself, or "there is no KEY" where it has none.
    """
    is_key = isinstance(error, KeyError) and len(error.args) == 1
    words = str(error.args[0] if is_key else error).split()
    return f"there is no {words[0]}" if is_key and len(words) == 1 else " ".join(words)
