"""schemathesis asks whatever the API's own description allows, and much that it does not."""

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")


@pytest.mark.slow
def test_nothing_that_is_asked_is_a_fault_of_the_server(models, serving, tmp_path):
    from hypothesis import HealthCheck, Phase, given, settings

    asked, faults = [], []
    with serving(models("t5"), tmp_path, new_tokens=8, waiting=64) as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        everything = [operation.ok() for operation in schema.get_all_operations()]
        for operation in everything:
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                @settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                          suppress_health_check=list(HealthCheck))  # fmt: skip
                @given(case=operation.as_strategy(generation_mode=mode))
                def ask(case):
                    answer = case.call(timeout=60)
                    asked.append((operation.label, answer.status_code))
                    if answer.status_code >= 500:
                        faults.append((operation.label, case.body, answer.text))

                try:
                    ask()
                except Exception as error:  # an operation without anything that could be wrong
                    if "Unsatisfiable" not in type(error).__name__ and "Skip" not in type(error).__name__:
                        raise
    assert not faults, faults[:3]
    assert {operation for operation, _ in asked} == {operation.label for operation in everything}
    assert {status for operation, status in asked if operation == "POST /v1/completions"} >= {400}
