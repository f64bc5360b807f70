"""The metric of Super-NaturalInstructions as a module of `evaluate`."""

import datasets
import evaluate

from .scores import answer_scores

_DESCRIPTION = """
Exact match and ROUGE-L of Super-NaturalInstructions (English track), in per cent: the best over an instance's
references, averaged over instances, over tasks and over categories.
"""
_INPUTS = """
Args:
    predictions (list of str): One answer for each instance.
    references (list of list of str): The accepted answers of each instance, at least one.
    tasks (list of str, optional): The task of each instance.
    categories (list of str, optional): The category of each instance's task.
Returns:
    exact_match, rouge_l, n: means over instances in per cent, and the number of instances.
    macro, per_task: with tasks, the means over tasks, and the scores of each.
    per_category: with categories, the scores of each.
"""
_CITATION = """
@inproceedings{wang2022supernaturalinstructions,
  title={Super-NaturalInstructions: Generalization via Declarative Instructions on 1600+ NLP Tasks},
  author={Wang, Yizhong and Mishra, Swaroop and Alipoormolabashi, Pegah and Kordi, Yeganeh and others},
  booktitle={Proceedings of EMNLP},
  year={2022}
}
"""


class SniAnswers(evaluate.Metric):
    """Computes SNI's scores of answers; `scores.py` says what is counted."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({
                "predictions": datasets.Value("string"),
                "references": datasets.Sequence(datasets.Value("string")),
            }),
            reference_urls=["https://github.com/allenai/natural-instructions/tree/master/eval/automatic"],
        )

    def _compute(self, predictions, references, tasks=None, categories=None):
        return answer_scores(predictions, references, tasks, categories)
