"""T0's rank classification as a module of `evaluate`."""

import datasets
import evaluate

from .ranks import rank_scores

_DESCRIPTION = """
Accuracy, in per cent, of giving the option with the highest log-likelihood, summed and per token, for each template;
and for each data set the median over its templates with the interquartile range, as T0 is reported.
"""
_INPUTS = """
Args:
    log_likelihoods (list of list of float): For each record the log-likelihood of each option.
    token_counts (list of list of int): Over how many tokens each was summed.
    references (list of int): The index of the right option.
    templates (list of str, optional): The name of each record's template; no two data sets share one.
    datasets (list of str, optional): The data set of each record's template.
Returns:
    sum, mean, n: accuracy over records by log-likelihood and by log-likelihood per token, and their number.
    macro, per_template: with templates, the means over them, and the scores of each.
    per_dataset: with datasets, median, q1, q3, iqr, min and max over each one's templates.
"""
_CITATION = """
@inproceedings{sanh2022multitask,
  title={Multitask Prompted Training Enables Zero-Shot Task Generalization},
  author={Sanh, Victor and Webson, Albert and Raffel, Colin and Bach, Stephen and others},
  booktitle={International Conference on Learning Representations},
  year={2022}
}
"""


class RankClassification(evaluate.Metric):
    """Computes rank classification; `ranks.py` says what is counted."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({
                "log_likelihoods": datasets.Sequence(datasets.Value("float64")),
                "token_counts": datasets.Sequence(datasets.Value("int64")),
                "references": datasets.Value("int64"),
            }),
            reference_urls=["https://arxiv.org/abs/2110.08207"],
        )

    def _compute(self, log_likelihoods, token_counts, references, templates=None, datasets=None):
        return rank_scores(log_likelihoods, token_counts, references, templates, datasets)
