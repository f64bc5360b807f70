"""Other engines give the answers of `model.generate`, on a real language model."""

from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "smollm2-135m"


@pytest.mark.slow
def test_peft_and_llama_cpp_answer_as_we_do(smollm2, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from llama_cpp import INPUTS, INSTRUCTIONS, compare

    found = compare(tmp_path, str(SHIPPED), INSTRUCTIONS, INPUTS, scored=5)
    assert found["answers"] == 200 and found["different_texts"] > 60
    assert found["peft"]["different"] == 0 and found["llama.cpp"]["different"] <= 2
    assert all(abs(one["gap"]) < 1e-2 for one in found["llama.cpp"]["where"])
    assert found["largest_difference_of_scores"] < 1e-3
