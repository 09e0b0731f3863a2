"""The checks of chapter 12: each accepts the answer, rejects the stub and planted mistakes, and says why."""

import numpy as np
import torch
from checks_table import accepts, complete, rejects

import segformer_lite as sl
from segformer_lite.analysis.corruptions import FAMILIES, Corrupted, counted
from segformer_lite.course import checks


def swap(image, a, b):
    kept = image[:, a[0], a[1]].clone()
    image[:, a[0], a[1]] = image[:, b[0], b[1]]
    image[:, b[0], b[1]] = kept
    return image


def swap_views(image, a, b):
    image[:, a[0], a[1]], image[:, b[0], b[1]] = image[:, b[0], b[1]], image[:, a[0], a[1]]
    return image


def swap_one_channel(image, a, b):
    image[0, a[0], a[1]], image[0, b[0], b[1]] = image[0, b[0], b[1]].clone(), image[0, a[0], a[1]].clone()
    return image


def retention(scores, clean):
    return np.mean([np.mean(v[:3] if name in FAMILIES["noise"] else v) for name, v in scores.items()]) / clean


def pooled(scores, clean):
    return np.mean([x for name, v in scores.items() for x in (v[:3] if name in FAMILIES["noise"] else v)]) / clean


def score(model, dataset, name, size, severities=None):
    return np.mean([sl.evaluate(model, Corrupted(dataset, name, s), size, progress=False).miou
                    for s in severities or counted(name)])


def error(wrong, angles, elements):
    result = torch.zeros(angles, elements)
    for element, offset in wrong.items():
        result[:, element] = offset
    return result


def moments(wrong, angles, elements):
    result = torch.zeros(angles, elements)
    for element, offset in wrong.items():
        result[element % angles] = offset
    return result


def once(wrong, angles, elements):
    result = torch.zeros(angles, elements)
    for element, offset in wrong.items():
        result[0, element] = offset
    return result


RIGHT = [
    (checks.swap_pixels, swap),
    (checks.swap_pixels, lambda x, a, b: swap(x.clone(), b, a)),
    (checks.retention, retention),
    (checks.retention, lambda s, c: float(retention(s, c))),
    (checks.corrupted_score, score),
    (checks.wrong_elements, error),
    (checks.wrong_elements, lambda w, a, e: torch.tensor([[w.get(i, 0.0) for i in range(e)]] * a)),
]
WRONG = [
    (checks.swap_pixels, swap_views, r"pixel at \(0, 1\) was lost.*view"),
    (checks.swap_pixels, lambda x, a, b: swap_views(x, b, a), r"pixel at \(3, 5\) was lost.*view"),
    (checks.swap_pixels, swap_one_channel, "only the first channel"),
    (checks.swap_pixels, lambda x, a, b: x, "nothing was exchanged"),
    (checks.retention, lambda s, c: np.mean(list(s.values())) / c, "4 and 5 of noise count too"),
    (checks.retention, lambda s, c: np.mean([v[:3] for v in s.values()]) / c, "that holds for noise alone"),
    (checks.retention, pooled, "one mean"),
    (checks.retention, lambda s, c: retention(s, 1), "not divided"),
    (checks.retention, lambda s, c: 100 * retention(s, c), "per cent"),
    (checks.retention, lambda s, c: 1 / retention(s, c), "upside down"),
    (checks.retention, lambda s, c: 1 - retention(s, c), "what is lost"),
    (checks.retention, lambda s, c: "0.5 of it", "expected one number, got str"),
    (checks.corrupted_score, lambda m, d, n, s: sl.evaluate(m, d, s, progress=False).miou, "not corrupted"),
    (checks.corrupted_score, lambda m, d, n, s: score(m, d, n, s, range(1, 6)), "4 and 5 of noise count too"),
    (checks.corrupted_score, lambda m, d, n, s: score(m, d, n, s, (1, 2, 3)), "that holds for noise alone"),
    (checks.corrupted_score, lambda m, d, n, s: score(m, d, n, s, (3,)), "one severity"),
    (checks.corrupted_score, lambda m, d, n, s: score(m, d, n, None), "size is missing"),
    (checks.wrong_elements, moments, "one moment"),
    (checks.wrong_elements, once, "one angle only"),
    (checks.wrong_elements, lambda w, a, e: error(w, e, a) if max(w) < a else error(w, a, e).T, "exchanged|shape"),
    (checks.wrong_elements, lambda w, a, e: (error(w, a, e) != 0).float(), "became 1"),
]


test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
