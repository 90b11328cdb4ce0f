"""From annotations to training rows: readers, their refusals, and each step of the walk."""
import json
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest

from responserank.llm import formats as F
from responserank.llm import preferences as P
from responserank.settings import UserError
from responserank.files import content_hash, rng

CLEAR_A, SLIGHT_A, TIE, SLIGHT_B, CLEAR_B = list(F.PREFERENCES)[:5]
BASE = dict(split_by="prompt", test_size=None, loss="rank", strength="agreement", slight_weight=0.5, ties_in_agreement_total=True,
            bt_target="hard", rank_weight=1.0, fraction=1.0, fraction_by="annotator", drop_rank_fraction=0.0, keep_category=None,
            strata="global", length_buckets=None, dealing="round_robin", ranking_size="auto", allow_ties=False, cap=None, rank_noise=0)


def settings(**changes): return SimpleNamespace(**BASE | changes)


def vote(word, seconds=10.0, who="w1"): return dict(preference=word, seconds=seconds, annotator=who)


def annotated(n=3, **changes):
    """Good annotated comparisons; a change replaces a field of the second one."""
    rows = [dict(id=f"c{i}", prompt=f"Question {i // 2}?", completion_a=f"Answer {i}.", completion_b=f"Other answer {i}.",
                 annotations=[vote(CLEAR_A, 5, "ann"), vote(SLIGHT_B, 9.5, "bob"), vote(TIE, 12, "cy")]) for i in range(n)]
    rows[1] |= changes
    return rows


def pairs(n=3, **changes):
    rows = [dict(prompt=f"Question {i}?", chosen=f"Good {i}.", rejected=f"Bad {i}.", strength=float(i)) for i in range(n)]
    rows[1] |= changes
    return rows


def write(folder, rows, name="data.jsonl"):
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / name


def made(n, votes=4, seed=0, **columns):
    """Make a table of random votes, as if read and tokenised."""
    r = np.random.default_rng(seed)
    def lists(values): return list(values.reshape(n, votes))
    table = pd.DataFrame({
        "id": [f"c{i:06d}" for i in range(n)], "prompt_id": [f"p{i // 3}" for i in range(n)], "prompt": "Q?",
        "completion_a": [f"a{i}" for i in range(n)], "completion_b": [f"bb{i}" for i in range(n)],
        "preferences": lists(r.integers(-2, 3, n * votes).astype(np.int8)), "seconds": lists(r.lognormal(3, 1, n * votes)),
        "annotators": lists(np.char.mod("w%d", r.integers(0, 60, n * votes)).astype(object)), "length": r.integers(40, 900, n)})
    table["margin"] = [np.sign(p).mean() for p in table["preferences"]]
    return table.assign(label=np.sign(table["margin"]), topic=[f"t{i % 8}" for i in range(n)], **columns)


# ---- words, agreement

def test_agreement_and_mean_preference_match_the_reference(shared):
    vectors = json.loads((shared / "reference/vectors.json").read_text())["strength"]
    assert len(vectors) == 72
    for v in vectors:
        words, slight = v["annotations"], v["slight"]
        assert P.agreement(words, slight) == pytest.approx(v["agreement_ties_counted"], abs=1e-12)
        assert P.agreement(words, slight, count_ties=False) == pytest.approx(v["agreement_ties_dropped"], abs=1e-12)
        assert P.mean_preference(words, slight) == pytest.approx(v["mean_preference"], abs=1e-12)
    for slight in (0.25, 0.5, 0.75):                            # the whole-table versions, on lists of unequal length
        some = [v for v in vectors if v["slight"] == slight]
        table = pd.DataFrame({"preferences": [F.vote_codes(v["annotations"]) for v in some]})
        np.testing.assert_allclose(P.agreements(table, slight), [v["agreement_ties_counted"] for v in some], atol=1e-12)
        np.testing.assert_allclose(P.agreements(table, slight, False), [v["agreement_ties_dropped"] for v in some], atol=1e-12)
        np.testing.assert_allclose(F.mean_preferences(table, slight), [v["mean_preference"] for v in some], atol=1e-12)


# ---- reading

def test_formats_of_annotated_comparisons_agree(tmp_path):
    rows = annotated()
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "x.parquet")
    frame.assign(annotations=frame["annotations"].map(json.dumps)).to_csv(tmp_path / "x.csv", index=False)
    long = pd.DataFrame([{k: v for k, v in r.items() if k != "annotations"} | a for r in rows for a in r["annotations"]])
    long.to_csv(tmp_path / "long.csv", index=False)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    first, report = F.read_preferences(write(tmp_path, rows))
    assert (report["comparisons"], report["annotations"]) == (3, 9)
    assert first["preferences"][0].tolist() == [2, -1, 0] and first["annotators"][0].tolist() == ["ann", "bob", "cy"]
    assert first["prompt_id"][0] == first["prompt_id"][1] != first["prompt_id"][2]
    for other in ("x.parquet", "x.csv", "long.csv", "saved"):
        pd.testing.assert_frame_equal(F.read_preferences(tmp_path / other)[0], first)


def test_ranked_pairs_with_everything(tmp_path):
    chat = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    rows = [dict(chosen=chat, rejected=chat[:1] + [{"role": "assistant", "content": "No."}], rank=i, response_time=i + 1.5, stratum="s", annotator=f"w{i}",
                 topic="t", category="c", bt_target=0.75, id=f"x{i}") for i in range(2)]
    table, report = F.read_preferences(write(tmp_path, rows))
    assert report["shape"] == "ranked pairs" and table["prompt"][0] == chat[:1] and table["completion_a"][0] == chat[1:]
    assert table[["rank_given", "response_time", "stratum_given", "annotator", "bt_target_given", "choice", "label"]].iloc[1].tolist() == [
        1, 2.5, "s", "w1", 0.75, 1, 1]
    pd.DataFrame(rows).assign(chosen=lambda t: t.chosen.map(json.dumps), rejected=lambda t: t.rejected.map(json.dumps)).to_csv(tmp_path / "x.csv", index=False)
    pd.testing.assert_frame_equal(F.read_preferences(tmp_path / "x.csv")[0], table)


WRONG = [
    (annotated(completion_a=""), "row 2, column 'completion_a': the text is empty"),
    (annotated(completion_b=[{"role": "assistant", "content": " "}]), "row 2, column 'completion_b': the last message is empty"),
    (annotated(completion_b=17), "row 2, column 'completion_b': a text or a list of messages is expected, found int"),
    (annotated(id="c0"), "row 2, column 'id': duplicate id 'c0', first seen in row 1"),
    (annotated(id=None), "row 2, column 'id': empty"),
    (annotated(annotations=[]), "row 2: this comparison has no annotations"),
    (annotated(annotations=None), "row 2: this comparison has no annotations"),
    (annotated(annotations="A"), "row 2, column 'annotations': not valid JSON"),
    (annotated(annotations=[3]), "row 2, column 'annotations': a list of annotations"),
    (annotated(annotations=[vote(TIE), vote("Tied")]), "row 2, column 'annotations', item 2, 'preference': unknown preference 'Tied' (did you mean 'Tie'?)"),
    (annotated(annotations=[vote(None)]), "row 2: this comparison has no annotations"),
    (annotated(annotations=[vote(None), vote(7)]), "item 2, 'preference': unknown preference 7"),
    (annotated(annotations=[vote(TIE, seconds=-1)]), "item 1, 'seconds': a finite number of at least 0 is expected, found -1"),
    (annotated(annotations=[vote(TIE, seconds="fast")]), "item 1, 'seconds': a finite number of at least 0 is expected, found 'fast'"),
    (annotated(annotations=[vote(TIE, seconds=float("inf"))]), "item 1, 'seconds': a finite number"),
    (annotated(annotations=[vote(TIE, who=None)]), "item 1, 'annotator': empty, although other rows have it"),
    (pairs(strength=float("nan")), "row 2, column 'strength': a finite number is expected, found nan"),
    (pairs(strength=float("inf")), "row 2, column 'strength': a finite number is expected, found inf"),
    (pairs(strength="high"), "row 2, column 'strength': a finite number is expected, found 'high'"),
    (pairs(strength=None), "row 2, column 'strength': a finite number is expected"),
    (pairs(strength=[1]), "row 2, column 'strength': a finite number is expected, found [1]"),
    (pairs(rejected=" "), "row 2, column 'rejected': the text is empty"),
    ([r | dict(response_time="3 s") for r in pairs()], "row 1, column 'response_time': a finite number of at least 0 is expected, found '3 s'"),
    ([r | dict(response_time=-2) for r in pairs()], "row 1, column 'response_time': a finite number of at least 0"),
    ([r | dict(bt_target=1.5) for r in pairs()], "row 1, column 'bt_target': a finite number from 0 to 1 is expected, found 1.5"),
    ([r | dict(rank=1) for r in pairs()], "both 'strength' and 'rank' are given"),
    (pairs(stratum="x"), "row 1, column 'stratum': empty"),
    ([dict(chosen="a", rejcted="b")], "no column 'rejected' (did you mean 'rejcted'?)"),
    ([dict(completion_a="a", completion_b="b", annotation=[])], "no column 'annotations' (did you mean 'annotation'?)"),
    ([dict(completion_a="a", completion_b="b", annotations=[dict(prefernce=TIE)])], "no column 'preference' (did you mean 'prefernce'?)"),
    ([dict(question="a", answer="b")], "neither ranked pairs (chosen, rejected) nor annotated comparisons"),
]


@pytest.mark.parametrize("rows, said", WRONG, ids=[w[1][:60] for w in WRONG])
def test_a_wrong_row_is_named_in_one_line(tmp_path, rows, said):
    with pytest.raises(UserError) as e: F.read_preferences(write(tmp_path, rows))
    assert said in str(e.value) and "data.jsonl" in str(e.value) and "\n" not in str(e.value)


def test_votes_left_empty_are_counted(tmp_path):
    table, report = F.read_preferences(write(tmp_path, annotated(annotations=[vote(None), vote(CLEAR_B, 3, "bob"), dict(annotator="cy")])))
    assert table["preferences"][1].tolist() == [-2] and table["annotators"][1].tolist() == ["bob"] and table["seconds"][1].tolist() == [3]
    assert (report["annotations"], report["empty_votes_dropped"]) == (7, 2)
    with pytest.raises(UserError, match="item 3, 'preference': unknown preference 'x'"):
        F.read_preferences(write(tmp_path, annotated(annotations=[vote(None), vote(TIE), vote("x")])))


def test_one_vote_a_row_must_agree_on_the_texts(tmp_path):
    row = dict(id="c1", prompt="Q?", completion_a="x", completion_b="y", preference="A")
    with pytest.raises(UserError, match="row 3, column 'completion_a': another text than row 1 has for comparison 'c1'"):
        F.read_preferences(write(tmp_path, [row, row, row | dict(completion_a="z")]))
    with pytest.raises(UserError, match="row 2, column 'preference': unknown preference 'maybe'"):
        F.read_preferences(write(tmp_path, [row, row | dict(preference="maybe")]))


def multipref(n=4):
    def lists(*votes): return [dict(overall_pref=w, time_spent=t, evaluator=e, timestamp="2024", helpful_pref="Tie") for w, t, e in votes]
    rows = [dict(comparison_id=f"m{i}", prompt_id="p", text="Hi?", completion_a=f"Yes {i}.", completion_b=f"No {i}.", model_a="m1", model_b="m2",
                 source="s", category="chat", subject_study=None, highest_level_degree=None,
                 normal_worker_annotations=lists((CLEAR_A, 30, "n1"), (SLIGHT_B, 40, "n2")),
                 expert_worker_annotations=lists((CLEAR_A, 90, "e1"), (TIE, 60, "e2"))) for i in range(n)]
    def chat(text): return [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": text}]
    verdict = [("Yes 0.", False), ("No 1.", False), ("Yes 2.", True), ("something else", False)]
    binarized = [dict(comparison_id=f"m{i}", chosen=chat(t), rejected=chat("…"), tie_is_common=tie) for i, (t, tie) in enumerate(verdict)][::-1]
    return pd.DataFrame(rows), pd.DataFrame(binarized)


README = "---\nconfigs:\n" + "".join(f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n"
                                     for c in ("default", "human_overall_binarized")) + "---\n"


@pytest.mark.parametrize("readme", [True, False])
def test_multipref_in_the_hubs_own_layout(tmp_path, readme, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for config, frame in zip(("default", "human_overall_binarized"), multipref()):
        (tmp_path / "mp" / config).mkdir(parents=True)
        frame.to_parquet(tmp_path / "mp" / config / "train-00000-of-00001.parquet")
    if readme: (tmp_path / "mp/README.md").write_text(README)
    table, report = F.read_preferences(tmp_path / "mp")
    assert table["preferences"][0].tolist() == [2, -1, 2, 0]            # normal and expert workers together
    assert table["seconds"][0].tolist() == [30, 40, 90, 60] and table["annotators"][0].tolist() == ["n1", "n2", "e1", "e2"]
    np.testing.assert_array_equal(table["label"], [1, -1, 0, np.nan])
    assert table["majority"].tolist() == [1] * 4 and table["margin"].tolist() == [0.25] * 4
    assert (report["label_ties"], report["unlabelled"]) == (1, 1)


def test_the_hub_name_takes_the_same_road(monkeypatch):
    frames = dict(zip(("default", "human_overall_binarized"), multipref()))
    asked = []
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, **k: [*frames, "gpt4_overall_binarized"])
    def load(name, config, split): asked.append((name, config, split)); return datasets.Dataset.from_pandas(frames[config])
    monkeypatch.setattr(datasets, "load_dataset", load)
    table, _ = F.read_preferences("allenai/multipref")
    assert asked == [("allenai/multipref", "default", "train"), ("allenai/multipref", "human_overall_binarized", "train")]
    np.testing.assert_array_equal(table["label"], [1, -1, 0, np.nan])
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, **k: ["en", "fr"])
    with pytest.raises(UserError, match=r"holds several tables \(en, fr\)"): F.read_preferences("some/other")
    def down(*a, **k): raise ConnectionError("no network")
    monkeypatch.setattr(datasets, "get_dataset_config_names", down)
    with pytest.raises(UserError, match="the Hugging Face hub cannot be reached"): F.read_preferences("allenai/multipref")


def test_a_known_truth_is_the_label_and_the_majority_is_kept():
    frame, _ = multipref()
    table, _ = F.from_multipref(frame.assign(true_diff=[-1.0, 2.0, -0.5, 1.0]))
    assert table["label"].tolist() == [-1, 1, -1, 1] and table["majority"].tolist() == [1] * 4


def test_argument_data(shared):
    table, report = F.read_preferences(shared / "data/ukpconvarg1")
    assert (len(table), report["annotations"], table["topic"].nunique()) == (16927, 84445, 32)
    assert table["label"].isin([-1, 1]).sum() == 15223 and "CC BY" in report["licence"]
    assert P._longer_wins(table) == pytest.approx(0.718, abs=5e-4)
    train, test, said = P.train_test_split(table, settings(split_by=report["split_by"], test_size=50), rng(0))
    assert said["held_out"] == 8 and not set(train["topic"]) & set(test["topic"]) and set(test["label"]) == {-1.0, 1.0}
    texts = [set(t["completion_a"]) | set(t["completion_b"]) for t in (train, test)]
    assert not texts[0] & texts[1]
    drawn, _ = P.draw_votes(train, settings(), rng(1))
    with pytest.raises(UserError, match="no preference in the data is slight"): P.rank_by_signal(drawn, settings(strength="stated"), None)
    for strength in ("agreement", "consensus", "response_time"):
        assert P.rank_by_signal(drawn, settings(strength=strength), None)[1]["without_rank"] == 0


def test_argument_xml_is_read_like_the_tables(tmp_path):
    votes = "".join(f"<mTurkAssignment><turkID>{w}</turkID><hitID>h</hitID><assignmentAcceptTime>2016-01-31 16:53:19.0 UTC</assignmentAcceptTime>"
                    f"<assignmentSubmitTime>2016-01-31 16:54:20.0 UTC</assignmentSubmitTime><value>{v}</value></mTurkAssignment>"
                    for w, v in (("u", "a1"), ("v", "equal"), ("w", "a2")))
    pair = "<annotatedArgumentPair><id>{0}_{1}</id>" + "".join(
        f"<arg{k}><text>Text &amp; {{{k - 1}}}</text><id>{{{k - 1}}}</id></arg{k}>" for k in (1, 2)) + f"<mTurkAssignments>{votes}</mTurkAssignments></annotatedArgumentPair>"
    xml, csv = tmp_path / "repo/data/UKPConvArg1-full-XML", tmp_path / "csv"
    xml.mkdir(parents=True)
    csv.mkdir()
    for topic, ids in (("one", ("a", "b")), ("two", ("c", "d"))): (xml / f"{topic}.xml").write_text(f"<?xml version='1.0'?><list>{pair.format(*ids)}</list>")
    pd.DataFrame([(i, t, f"Text & {i}") for t, ids in (("one", "ab"), ("two", "cd")) for i in ids], columns=["argument_id", "topic", "text"]).to_csv(
        csv / "arguments.csv.gz", index=False)
    pd.DataFrame([(a, b, w, v, 1, 61) for a, b in ("ab", "cd") for w, v in (("u", "A"), ("v", "equal"), ("w", "B"))],
                 columns=["argument_a", "argument_b", "annotator", "vote", "hit", "hit_seconds"]).to_csv(csv / "annotations.csv.gz", index=False)
    tables = [F.read_preferences(tmp_path / name)[0] for name in ("repo", "csv")]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["preferences"][0].tolist() == [2, 0, -2] and tables[0]["seconds"][0].tolist() == [61] * 3
    (xml / "two.xml").write_text((xml / "two.xml").read_text()[:300])
    with pytest.raises(UserError, match=r"two.xml, line \d+: not valid XML"): F.read_preferences(tmp_path / "repo")


# ---- tokens, split

@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    vocabulary = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>", "user", "assistant", *"abcdefgh"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    def make(template=None):
        t = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        t.chat_template = template
        return t
    return make


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {{ eos_token }}{% endfor %}"
PICKY = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the first must be a user') }}{% endif %}" + TEMPLATE


def two(**columns): return pd.DataFrame(dict(id=["x", "y"], prompt="a b", completion_a=["c", "d e f g"], completion_b=["h", "c"]) | columns)


def test_tokens_with_and_without_a_template(tokenizer):
    plain = P.tokenize(two(), tokenizer(), 10)[0]
    assert plain["tokens_a"][0].tolist() == [0, 5, 6, 7, 1] and plain["length"][0] == 10            # <s> a b c </s>
    chat = P.tokenize(two(), tokenizer(TEMPLATE), 20)[0]
    assert chat["tokens_a"][0].tolist() == [0, 3, 5, 6, 1, 4, 7, 1]
    said = P.to_messages("a b", "c")
    messages = two(prompt=[said[:1]] * 2, completion_a=[said[1:], [{"role": "assistant", "content": "d e f g"}]])
    assert P.tokenize(messages, tokenizer(TEMPLATE), 20)[0]["tokens_a"].map(list).tolist() == chat["tokens_a"].map(list).tolist()
    assert P.tokenize(two(prompt=""), tokenizer(), 10)[0]["tokens_a"][0].tolist() == [0, 7, 1]


def test_long_comparisons_are_dropped_and_counted(tokenizer):
    table, report = P.tokenize(two(), tokenizer(), 5)
    assert table["id"].tolist() == ["x"] and (report["rows"], report["too_long"]) == (1, 1)
    with pytest.raises(UserError, match="all 2 comparisons have a side longer than max_length=2"): P.tokenize(two(), tokenizer(), 2)


def test_a_template_may_refuse_and_padding_is_seen_to(tokenizer):
    with pytest.raises(UserError, match="refuses the roles .*the first must be a user"): P.tokenize(two(prompt=""), tokenizer(PICKY), 20)
    bare = tokenizer()
    assert P.encode_texts(["a"], bare) and bare.pad_token == "</s>"
    bare = tokenizer()
    bare.eos_token = None
    with pytest.raises(UserError, match="neither a pad nor an eos"): P.encode_texts(["a"], bare)


@pytest.mark.parametrize("by, unit", [("comparison", "id"), ("prompt", "prompt_id"), ("topic", "topic")])
def test_splits_keep_units_whole_and_follow_the_seed(by, unit):
    table = made(120)
    train, test, report = P.train_test_split(table, settings(split_by=by, test_size=30), rng(3))
    assert not set(train[unit]) & set(test[unit])
    assert len(train) + report["test_rows"] + report["test_ties_dropped"] + report["test_unlabelled_dropped"] == 120
    assert len(train) == 90 and (test["label"] != 0).all()
    shuffled = P.train_test_split(table.sample(frac=1, random_state=1), settings(split_by=by, test_size=30), rng(3))
    assert set(shuffled[1]["id"]) == set(test["id"])                                        # whatever the order of the file
    assert set(P.train_test_split(table, settings(split_by=by, test_size=30), rng(4))[1]["id"]) != set(test["id"])


def test_topics_and_default_sizes():
    assert P.train_test_split(made(64).assign(topic=[f"t{i % 32}" for i in range(64)]), settings(split_by="topic", test_size=1), rng(0))[2]["held_out"] == 8
    assert P.train_test_split(made(60).assign(topic=[f"t{i % 3}" for i in range(60)]), settings(split_by="topic"), rng(0))[2]["held_out"] == 1
    assert len(P.train_test_split(made(50), settings(split_by="comparison"), rng(0))[0]) == 40


@pytest.mark.parametrize("by", ["comparison", "prompt"])
def test_the_same_pair_never_stands_on_both_sides(by):
    """Whatever the unit and the order of the two texts."""
    table = made(200)
    again = np.arange(200) // 4  # four comparisons of each pair, under prompts of their own names
    table["completion_a"], table["completion_b"] = [f"a{k}" for k in again], [f"b{k}" for k in again]
    swap = np.random.default_rng(1).random(200) < .5
    table.loc[swap, ["completion_a", "completion_b"]] = table.loc[swap, ["completion_b", "completion_a"]].to_numpy()
    train, test, report = P.train_test_split(table.assign(prompt_id=table["id"]), settings(split_by=by, test_size=40), rng(0))
    assert report["shared_pairs"] == 0 == report["shared_texts"] and len(train) + 40 == 200
    assert not set(map(frozenset, zip(train["completion_a"], train["completion_b"]))) & set(map(frozenset, zip(test["completion_a"], test["completion_b"])))


def test_texts_held_out():
    """Comparisons between a text that is held out and one that isn't are left out and counted; pairs of their own lose nothing."""
    r = np.random.default_rng(0)
    table = made(400)
    table["completion_a"], table["completion_b"] = [f"t{k}" for k in r.integers(0, 20, 400)], [f"t{20 + k}" for k in r.integers(0, 20, 400)]
    train, test, report = P.train_test_split(table, settings(split_by="text", test_size=40), rng(0))
    texts = [set(t["completion_a"]) | set(t["completion_b"]) for t in (train, test)]
    assert not texts[0] & texts[1] and report["shared_texts"] == 0 and report["across_the_split"] > 0
    assert len(train) + report["across_the_split"] + report["test_rows"] + report["test_ties_dropped"] == 400
    assert P.train_test_split(made(100), settings(split_by="text", test_size=20), rng(0))[2]["across_the_split"] <= 1


def test_sides_that_the_template_makes_equal_are_left_out(tokenizer):
    table = pd.concat([two(), two().assign(completion_a="same", completion_b=" same").head(1)], ignore_index=True)
    kept, report = P.tokenize(table, tokenizer(), 30)
    assert len(kept) == 2 and report["equal_sides"] == 1


def test_pairs_without_prompts_are_split_by_comparison():
    table = F._from_pairs(pd.DataFrame([{k: v for k, v in r.items() if k != "prompt"} for r in pairs(10)]))
    train, test, report = P.train_test_split(table, settings(test_size=2), rng(0))
    assert (len(train), len(test)) == (8, 2) and report["by"] == "comparison" and "no prompts" in report["note"]


@pytest.mark.parametrize("table, changes, said", [
    (made(4), {}, "4 comparisons are too few for a test set of 1"),
    (made(30), dict(test_size=30), "30 comparisons are too few for a test set of 30"),
    (made(30).assign(prompt_id="p"), dict(test_size=3), "would take all 1 prompts"),
    (made(30).assign(topic="t"), dict(split_by="topic"), "would take all 1 topics"),
    (made(30).drop(columns="topic"), dict(split_by="topic"), "no column 'topic'"),
    (made(30).assign(label=0.0), dict(test_size=5), "has a label other than a tie"),
    (made(30), dict(split_by="pair"), "split_by='pair': use comparison, prompt, topic, text")])
def test_a_split_that_cannot_be(table, changes, said):
    with pytest.raises(UserError) as e: P.train_test_split(table, settings(**changes), rng(0))
    assert said in str(e.value)


# ---- draw, signal, sample

def test_every_vote_is_drawn_as_often():
    table = pd.concat([made(1).assign(preferences=[np.array([2, 1, -1, 0], np.int8)])] * 8000, ignore_index=True)
    drawn, report = P.draw_votes(table, settings(), rng(0))
    share = [report["ties_dropped"] / 8000] + [float(((drawn["choice"] == c) & (drawn["stated"] == s)).sum()) / 8000 for c, s in ((1, 2), (1, 1), (-1, 1))]
    np.testing.assert_allclose(share, 0.25, atol=0.02)


def test_a_drawn_row_is_one_persons_vote():
    table = made(500)
    drawn, report = P.draw_votes(table, settings(), rng(0))
    assert len(drawn) + report["ties_dropped"] == 500
    for r in drawn.itertuples():
        assert (r.choice * r.stated, r.seconds_drawn, r.annotator) in set(zip(r.preferences.astype(float), r.seconds, r.annotators))


def test_nothing_but_ties_cannot_be_trained_on():
    with pytest.raises(UserError, match="all 5 drawn preferences are ties"): P.draw_votes(made(5).assign(preferences=[np.zeros(4, np.int8)] * 5), settings(), rng(0))


def test_signals_and_targets_by_hand():
    table = made(2).assign(preferences=[np.array([2, 1, 0, -1], np.int8), np.array([-2, -2, 1, 0], np.int8)], choice=[1, 1], stated=[2.0, 1.0], seconds_drawn=[4.0, np.nan])
    def rank(**c): return P.rank_by_signal(table, settings(**c), None)[0]["rank"].tolist()
    def target(**c): return P.rank_by_signal(table, settings(loss="bt", **c), None)[0]["target"].tolist()
    assert rank(strength="stated") == [0, 1]
    assert rank(strength="agreement") == [-0.25, -0.375] and rank(strength="agreement", slight_weight=0.25) == [-0.25, -0.4375]
    assert rank(strength="agreement", ties_in_agreement_total=False) == pytest.approx([-1 / 3, -0.5])
    assert rank(strength="consensus") == [-0.25, 0.375]                  # the second choice is the minority's: last
    assert P.rank_by_signal(table, settings(strength="response_time"), None)[1]["without_rank"] == 1
    assert target() == [1, 1] and target(bt_target="agreement") == [0.625, 0.6875] and target(bt_target="mean_preference") == [0.625, 0.3125]


SIGNAL_ERRORS = [
    (dict(strength="agreement"), made(6, votes=1), "just one annotation"),
    (dict(strength="consensus"), made(6, votes=1), "just one annotation"),
    (dict(strength="response_time"), made(6).assign(seconds=[np.full(4, np.nan)] * 6), "no response times"),
    (dict(strength="agreement"), made(6).assign(preferences=[np.full(4, 2, np.int8)] * 6), "all 6 ranks are tied"),
    (dict(strength="stated"), made(6).assign(preferences=[np.full(4, 2, np.int8)] * 6), "no preference in the data is slight"),
    (dict(strength="given"), F._from_pairs(pd.DataFrame(pairs()).drop(columns="strength")), "no column strength, rank or response_time"),
    (dict(strength="loudness"), made(6), "unknown strength 'loudness'; known: response_time"),
    (dict(loss="bt", bt_target="given"), F._from_pairs(pd.DataFrame(pairs())), "no column bt_target, and no votes"),
    (dict(loss="bt", bt_target="agreement"), made(6, votes=1), "just one annotation"),
    (dict(loss="bt", bt_target="mean_preference"), F._from_pairs(pd.DataFrame(pairs())), "ranked pairs carry no votes"),
    (dict(strength="agreement"), F._from_pairs(pd.DataFrame(pairs())), "ranked pairs carry no votes"),
    (dict(strength="response_time"), F._from_pairs(pd.DataFrame(pairs())), "no response times")]


@pytest.mark.parametrize("changes, table, said", SIGNAL_ERRORS, ids=[f"{list(s[0].values())[-1]}-{s[2][:20]}" for s in SIGNAL_ERRORS])
def test_a_signal_that_the_data_lack(changes, table, said):
    s = settings(**changes)
    with pytest.raises(UserError) as e: P.rank_by_signal(P.draw_votes(table, s, rng(0))[0], s, None)
    assert said in str(e.value) and "\n" not in str(e.value)


def test_targets_that_nobody_gave_come_from_the_votes():
    table = P.draw_votes(made(6), settings(), rng(0))[0]
    given, votes = (P.rank_by_signal(table, settings(loss="bt", bt_target=t), None)[0]["target"] for t in ("given", "mean_preference"))
    assert given.tolist() == votes.tolist()
    assert len(P.draw_votes(made(6), settings(loss="bt_ties"), rng(0))[0]) == 6  # ties stay


@pytest.mark.parametrize("people, strata", [(["a", "b"], "annotator"), (["a", "a"], "global"), (["", ""], "global")])
def test_times_that_came_with_the_data_are_compared_within_people(people, strata):
    rows = [dict(prompt="q", chosen=f"c{i}", rejected=f"r{i}", response_time=float(i), annotator=people[i % 2]) for i in range(8)]
    table = F._from_pairs(pd.DataFrame(rows))
    ready, report = P.rank_by_signal(table, settings(strength="given"), None)
    assert report["strength"] == "given (response_time)"
    done, report = P.stratify_by_signal(ready, settings(strength="given", strata="global"), None)
    assert report["by"] == strata and ("within annotators" in report.get("note", "")) == (strata == "annotator")
    assert P.stratify_by_signal(ready.assign(stratum_given="s"), settings(strength="given", strata="column"), None)[1]["by"] == "column"


@pytest.mark.parametrize("strength", list(P.SIGNALS))
def test_bradley_terry_needs_no_signal(strength):
    for table in (made(6, votes=1).assign(seconds=[np.array([np.nan])] * 6), F._from_pairs(pd.DataFrame(pairs()).drop(columns="strength"))):
        drawn = P.draw_votes(table, settings(), rng(0))[0]
        ready, report = P.rank_by_signal(drawn, settings(loss="bt", strength=strength), None)
        assert ready["rank"].isna().all() or strength in ("stated", "given") and "preferences" in ready
        assert (ready["target"] == 1).all()
    computed = P.rank_by_signal(P.draw_votes(made(50), settings(), rng(0))[0], settings(loss="bt", strength="agreement"), None)[0]
    assert computed["rank"].notna().all()                               # rr_agree_bt packs its batches by it


def test_sampling_by_annotator_takes_whole_people():
    table = P.draw_votes(made(400), settings(), rng(0))[0]
    kept, report = P.sample_rows(table, settings(fraction=0.3), rng(1))
    share = kept.groupby("annotator").size() / table.groupby("annotator").size()
    assert len(kept) == round(0.3 * len(table)) and (share.dropna() < 1).sum() <= 1
    assert kept.index.is_monotonic_increasing and report["annotators"] == kept["annotator"].nunique()
    uniform, _ = P.sample_rows(table, settings(fraction=0.3, fraction_by="uniform"), rng(1))
    assert len(uniform) == len(kept) and uniform["annotator"].nunique() > kept["annotator"].nunique()
    assert len(P.sample_rows(table, settings(fraction=1e-9), rng(1))[0]) == 1
    for bad in (0, 1.5, -1):
        with pytest.raises(UserError, match="fraction="): P.sample_rows(table, settings(fraction=bad), rng(1))


# ---- the walk

def test_the_walk_is_a_function_of_its_seed():
    table = made(300)
    one, two, other = (P.prepare_rows(table, settings(), s)[0] for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert one["choice"].tolist() != other["choice"].tolist()[:len(one)]
    timed, reports = P.prepare_rows(table, settings(strength="response_time", strata="annotator", ranking_size=2), 1)
    assert timed["choice"].tolist() == one["choice"].tolist()            # the method changes ranks, not the draw
    assert len(reports) == len(P.STEPS) and P.report_table(reports)["step"].tolist() == [r["step"] for r in reports]
    assert {"choice", "annotator", "rank", "target", "stratum", "ranking"} <= set(one)


def test_a_renamed_step_draws_the_same_numbers(monkeypatch):
    """Random streams are named in STEPS and not by the functions."""
    def renamed(step):
        def other_name(table, settings, rng): return step(table, settings, rng)
        return other_name
    given, changes = made(300), settings(rank_noise=0.5, fraction=0.5, drop_rank_fraction=0.2, strata="annotator", ranking_size=4)
    usual = P.prepare_rows(given, changes, 1)[0]
    monkeypatch.setattr(P, "STEPS", {stream: renamed(step) for stream, step in P.STEPS.items()})
    pd.testing.assert_frame_equal(P.prepare_rows(given, changes, 1)[0], usual)
    numbers = usual[["choice", "rank", "stratum", "ranking"]].astype(float).round(9).reset_index(drop=True)
    assert content_hash(numbers) == "691b8254a763ddb3"  # as in the first release


def test_ten_thousand_comparisons_take_under_a_second():
    table = made(10_000)
    for changes in ({}, dict(strength="response_time", strata="annotator_x_length", length_buckets=8, ranking_size=2, fraction=0.5)):
        start = time.perf_counter()
        P.prepare_rows(table, settings(**changes), 0)
        assert time.perf_counter() - start < 1


# ---- data in memory

def test_data_in_memory_are_read_as_from_a_file(tmp_path):
    """A frame, a list, a `Dataset` and a `DatasetDict` give the table that the file gives, and hash what they hold."""
    rows = annotated()
    table = F.read_preferences(write(tmp_path, rows))[0]
    frame, held = pd.DataFrame(rows), datasets.Dataset.from_list(rows)
    in_memory = [frame, frame.set_index("id", drop=False), rows, held, datasets.DatasetDict(train=held), datasets.DatasetDict(other=held)]
    read = [F.read_preferences(data)[0] for data in in_memory]
    for found in read: pd.testing.assert_frame_equal(found, table)
    assert {found.attrs["content_hash"] for found in read} == {content_hash(table)}
    assert table.attrs["content_hash"] == content_hash(tmp_path / "data.jsonl")
    changed = F.read_preferences(annotated(prompt="Another question?"))[0]
    assert changed.attrs["content_hash"] != content_hash(table)


@pytest.mark.parametrize("data, said", [
    (datasets.DatasetDict(a=datasets.Dataset.from_list(pairs()), b=datasets.Dataset.from_list(pairs())), "has several splits for training, a, b"),
    ([], "the list: no rows"), ([pairs()[0], "no"], "the list, row 2: a dict is expected, found str"), (3.5, "data of type float: give a path"),
    (pairs(strength="much"), "the list, row 2, column 'strength': a finite number is expected"), ({}, "data of type dict: give a path")])
def test_data_in_memory_that_are_refused(data, said):
    with pytest.raises(UserError) as e: F.read_preferences(data)
    assert said in str(e.value) and "\n" not in str(e.value)
