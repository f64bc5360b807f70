from modeling_tagi.common.seeds import derived_seed


def test_a_stream_is_fixed_by_the_seed_and_every_name():
    named = [("text",), ("pretraining",), ("text", "batches"), ("text", "training"), ("tex", "tbatches")]
    found = {derived_seed(seed, *names) for seed in (0, 1, 10) for names in named}
    assert len(found) == 15
    assert all(0 <= seed < 2**32 for seed in found)
    # sha256(b"0\0text\0batches"), its first four bytes: printf '0\0text\0batches' | sha256sum
    assert derived_seed(0, "text", "batches") == 0x0b359742
