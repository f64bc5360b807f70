"""One seed, many streams: every stage of a run, and every purpose within a stage, draws random numbers of its own."""

import hashlib


def derived_seed(seed: int, *names: str) -> int:
    """Returns the seed of the stream of random numbers that `names` name.

    Streams of different names are unrelated: two stages never see the same draws, and a purpose that is added or
    left out changes no other.

    Args:
        seed: The run's.
        names: The stage, the purpose, and whatever else tells streams apart, such as "finetuning" and "batches".

    Returns:
        A number from 0 to 2³² − 1, which torch and NumPy take as a seed as well.
    """
    text = "\0".join([str(seed), *names])  # a mark between them, so that ("a", "bc") and ("ab", "c") differ
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
