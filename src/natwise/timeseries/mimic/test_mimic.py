"""The built data equal the published ones; rules, invariances, bad input, interruption."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from natwise.testing import check_result, check_resume
from natwise.timeseries import CleaningRules, CohortRules, MimicBenchmark, VariableMap
from natwise.timeseries.mimic import study

pl = pytest.importorskip("polars")
REFERENCE = json.loads(study.REFERENCE.read_text("utf-8"))


def test_published_code_gives_the_same(built):
    """reference.json: what the published code (pandas 1.5.3) made of `write_mimic3_tables(60, seed=1)`."""
    out, result = built
    expected = REFERENCE["synthetic"]
    for name, digest in expected["lists"].items():
        assert study.list_digest(out / name / "listfile.csv") == digest, name
    assert study.hashlib.sha256(study.series_text(out).encode()).hexdigest() == expected["timeseries"]
    counters = json.loads((out / "counters.json").read_text("utf-8"))
    assert counters == result.params["counters"]
    for name, value in expected["counters"].items():
        assert study.same_counter(counters[name], value), name
    assert result.scalars["n_events"] == expected["counters"]["validate_events"]["n_events"]
    check_result(result)


@pytest.mark.slow
def test_published_digests_of_the_open_demo(local_data):
    data = local_data("clinical/mimic3_demo/CHARTEVENTS.csv.gz").parent.parent.parent
    scalars = study.run("published-fixtures", scale="ci", seed=0, data_dir=data).scalars
    assert scalars["compared"] == 322
    assert scalars["mismatches"] == 0


def test_every_irregularity_is_there_and_counted(tables, built):
    manifest = json.loads((tables / "manifest.json").read_text("utf-8"))
    assert all(count > 0 for name, count in manifest.items() if name != "rows"), manifest
    counts = built[1].params["counters"]["validate_events"]
    drops = set(counts) - {"n_events", "no_icustay", "recovered"}
    assert counts["n_events"] == sum(counts[name] for name in drops)


def test_samples_keep_what_the_tasks_promise(built):
    out, _ = built
    episodes = pl.read_parquet(out / "episodes.parquet")
    keys = ["SUBJECT_ID", "EPISODE"]
    hourly = pl.read_parquet(out / "tasks/decompensation.parquet").join(episodes, on=keys)
    positive = hourly.filter(pl.col("LABEL") == 1)
    assert len(positive) > 0
    assert ((positive["LIVED"] - positive["HOURS"]) < 24).all()
    assert (hourly["HOURS"] > hourly["FIRST"]).all()
    assert hourly["HOURS"].min() > 4
    los = pl.read_parquet(out / "tasks/length_of_stay.parquet").join(episodes, on=keys)
    np.testing.assert_allclose(los["LABEL"] + los["HOURS"], 24 * los["LOS"], rtol=1e-15)
    parts = episodes.group_by("SUBJECT_ID").agg(pl.col("PART").n_unique())
    assert (parts["PART"] == 1).all()


def rebuilt(tables, out, **options):
    return MimicBenchmark.from_csv(tables, **options).build(out, ["decompensation"], export=False)


def same_build(a, b):
    for name in ("episodes.parquet", "tasks/decompensation.parquet"):
        if not pl.read_parquet(a / name).equals(pl.read_parquet(b / name)):
            return False
    return study.series_text(a) == study.series_text(b)


def shuffled_rows(folder):
    path = folder / "CHARTEVENTS.csv"
    header, *rows = path.read_text("utf-8").splitlines()
    order = np.random.default_rng(0).permutation(len(rows))
    path.write_text("\n".join([header, *(rows[i] for i in order)]) + "\n", "utf-8")


def duplicated_rows(folder):
    path = folder / "CHARTEVENTS.csv"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(path.read_text("utf-8").splitlines(keepends=True)[1::7])


def other_files(folder):
    """Lower-case names and headers, compression, Parquet, a table in two files."""
    header, *rows = (folder / "CHARTEVENTS.csv").read_text("utf-8").splitlines(keepends=True)
    (folder / "CHARTEVENTS.csv").unlink()
    half = len(rows) // 2
    (folder / "chartevents_1.csv").write_text("".join([header.lower(), *rows[:half]]), "utf-8")
    with gzip.open(folder / "chartevents_2.csv.gz", "wt") as file:
        file.writelines([header, *rows[half:]])
    pl.read_csv(folder / "ICUSTAYS.csv", try_parse_dates=True).write_parquet(folder / "icustays.parquet")
    (folder / "ICUSTAYS.csv").unlink()


def unmapped_and_foreign_rows(folder):
    """Events of unknown items, of admissions without a stay, of patients outside the cohort."""
    with (folder / "CHARTEVENTS.csv").open("a", encoding="utf-8") as file:
        subject = pl.read_csv(folder / "ICUSTAYS.csv")["SUBJECT_ID"][0]
        for who, hadm, item in ((subject, 1, 211), (subject, "", 211), (999999, 2, 211), (subject, 100000, 77)):
            file.write(f"1,{who},{hadm},,{item},2150-01-01 00:00:00,,,70,70,bpm,,,,\n")


def later_by_400_years(folder):
    """The same calendar, with other times: nothing but the differences counts."""
    for path in folder.glob("*.csv"):
        text = re.sub(r"\b(\d{4})(-\d\d-\d\d)", lambda m: f"{int(m[1]) + 400}{m[2]}", path.read_text("utf-8"))
        path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    "change", [later_by_400_years, shuffled_rows, duplicated_rows, other_files, unmapped_and_foreign_rows]
)
def test_what_does_not_matter(change, tables, built, tmp_path):
    shutil.copytree(tables, tmp_path / "tables")
    change(tmp_path / "tables")
    rebuilt(tmp_path / "tables", tmp_path / "out")
    assert same_build(built[0], tmp_path / "out")


def test_parts_bound_the_memory_and_change_nothing(tables, built, tmp_path):
    MimicBenchmark.from_csv(tables).build(tmp_path, ["decompensation"], export=False, events_per_part=3000)
    assert len(list((tmp_path / "timeseries").glob("*.parquet"))) > 5
    assert same_build(built[0], tmp_path)


TABLES = {
    "PATIENTS": "SUBJECT_ID,GENDER,DOB,DOD\n1,F,2080-01-01 00:00:00,\n2,M,1800-01-01 00:00:00,2150-01-04 00:00:00\n",
    "ADMISSIONS": "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,DEATHTIME,ETHNICITY,DIAGNOSIS\n"
    "1,10,2150-01-01 00:00:00,2150-01-09 00:00:00,,ASIAN - CHINESE,X\n"
    "2,20,2150-01-01 00:00:00,2150-01-04 12:00:00,2150-01-04 12:00:00,WHITE OR OTHER,X\n",
    "ICUSTAYS": "SUBJECT_ID,HADM_ID,ICUSTAY_ID,DBSOURCE,FIRST_CAREUNIT,LAST_CAREUNIT,FIRST_WARDID,LAST_WARDID,INTIME,"
    "OUTTIME,LOS\n1,10,100,carevue,MICU,MICU,7,7,2150-01-01 00:00:00,2150-01-04 00:00:00,3.0\n"
    "2,20,200,carevue,MICU,MICU,7,7,2150-01-01 00:00:00,2150-01-04 12:00:00,3.5\n",
    "DIAGNOSES_ICD": "SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE\n1,10,1,4019\n1,10,2,V5861\n2,20,1,4019\n",
    "D_ICD_DIAGNOSES": "ICD9_CODE\n4019\nV5861\n",
    "CHARTEVENTS": "SUBJECT_ID,HADM_ID,ICUSTAY_ID,ITEMID,CHARTTIME,VALUE,VALUEUOM\n",
    "LABEVENTS": "SUBJECT_ID,HADM_ID,ITEMID,CHARTTIME,VALUE,VALUEUOM\n",
    "OUTPUTEVENTS": "SUBJECT_ID,HADM_ID,ICUSTAY_ID,CHARTTIME,ITEMID,VALUE,VALUEUOM\n",
}
READINGS = [  # item, hour, value, unit -> variable, published, corrected
    (211, 1, "99", "bpm", "Heart Rate", "99", 101.0),
    (211, 1, "101", "bpm", "Heart Rate", "99", 101.0),
    (3420, 2, "50", "%", "Fraction inspired oxygen", 0.5, 0.5),
    (3420, 3, "0.5", "", "Fraction inspired oxygen", 0.005, 0.5),
    (3420, 4, "0.4", "torr", "Fraction inspired oxygen", 0.4, 0.4),
    (678, 5, "70", "", "Temperature", 70.0, 38 * 5 / 9),
    (678, 6, "98.6", "", "Temperature", (98.6 - 32) * 5 / 9, (98.6 - 32) * 5 / 9),
    (51, 7, "120/80", "mmHg", "Systolic blood pressure", 120.0, 120.0),
    (8368, 8, "120/80", "mmHg", "Diastolic blood pressure", 80.0, 80.0),
    (3348, 9, "Brisk", "", "Capillary refill rate", 0.0, 0.0),
    (3348, 10, "Delayed", "", "Capillary refill rate", 1.0, 1.0),
    (646, 11, "0.97", "%", "Oxygen saturation", 97.0, 97.0),
    (3581, 12, "100", "", "Weight", 100 * 0.453592, 100 * 0.453592),
    (3582, 13, "160", "", "Weight", 10 * 0.453592, 10 * 0.453592),
    (1394, 14, "65", "", "Height", 165.0, 165.0),
    (807, 15, " 7.4", "", "Glucose", None, None),
    (807, 16, "ERROR", "", "Glucose", None, None),
    (184, 17, "None", "", "Glascow coma scale eye opening", "None", "None"),
    (184, 18, "NaN", "", "Glascow coma scale eye opening", None, None),
    (456, 19, "high", "", "Mean blood pressure", "high", None),
]


def write_tables(folder, readings=READINGS, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    events = "".join(
        f"{s},{s}0,{s}00,{item},2150-01-01 {hour:02d}:00:00,{value},{unit}\n"
        for s in (1, 2)
        for item, hour, value, unit, *_ in readings
    )
    for name, text in {**TABLES, "CHARTEVENTS": TABLES["CHARTEVENTS"] + events, **changed}.items():
        if text is not None:
            (folder / f"{name}.csv").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize(("compat", "column"), [("2019", 5), ("clean", 6)])
def test_cleaning(compat, column, tmp_path):
    result = MimicBenchmark.from_csv(write_tables(tmp_path / "in")).build(tmp_path / "out", compat=compat)
    series = pl.read_parquet(tmp_path / "out/timeseries/part-0000.parquet").filter(pl.col("SUBJECT_ID") == 1)
    for reading in READINGS:
        found = series.filter(pl.col("Hours") == reading[1])[reading[4]].to_list()
        assert found == ([] if reading[column] is None else [reading[column]]), reading
    unusable = result.params["counters"]["unusable_values"]
    assert unusable == {"Glucose": 4} | ({"Mean blood pressure": 2} if compat == "clean" else {})
    episodes = pl.read_parquet(tmp_path / "out/episodes.parquet")
    assert episodes["ETHNICITY"].to_list() == [1, 4]
    assert (episodes["AGE"][1] > 300) == (compat == "2019")
    assert episodes["Diagnosis 4019"].to_list() == [1, int(compat == "clean")]
    assert episodes["Essential hypertension"].to_list() == [1, 1]
    assert episodes["MORTALITY"].to_list() == [0, 1]


def test_single_rules_can_be_switched(tmp_path):
    rules = CleaningRules(clip_outliers=True, fractions_stay=True)
    write_tables(tmp_path / "in", [(211, 1, "80", ""), (3420, 2, "0.1", ""), (3420, 3, "104", "")])
    MimicBenchmark.from_csv(tmp_path / "in").build(tmp_path / "out", ["phenotyping"], rules, export=False)
    series = pl.read_parquet(tmp_path / "out/timeseries/part-0000.parquet").filter(pl.col("SUBJECT_ID") == 1)
    assert series["Fraction inspired oxygen"].to_list() == [None, 1.0]


def test_other_hospitals(tmp_path):
    """MIMIC-IV's names and folders, another item map, other rules, another split."""
    write_tables(tmp_path / "in", [(1, 1, "80", ""), (211, 1, "90", "")])
    for table, (old, new) in {
        "PATIENTS": ("GENDER,DOB,DOD\n1,F,2080-01-01 00:00:00,", "gender,anchor_age,anchor_year,dod\n1,F,20,2150,"),
        "ICUSTAYS": ("HADM_ID,ICUSTAY_ID", "hadm_id,stay_id"),
        "ADMISSIONS": ("ETHNICITY", "race"),
        "DIAGNOSES_ICD": ("ICD9_CODE", "icd_code"),
        "D_ICD_DIAGNOSES": ("ICD9_CODE", "icd_code"),
        "CHARTEVENTS": ("ITEMID", "concept"),
    }.items():
        path = tmp_path / f"in/{table}.csv"
        text = path.read_text("utf-8").replace(old, new)
        path.unlink()
        target = tmp_path / f"in/{'icu' if table in ('ICUSTAYS', 'CHARTEVENTS') else 'hosp'}/{table.lower()}.csv"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text.replace("2,M,1800-01-01 00:00:00,", "2,M,17,2150,"), "utf-8")
    (tmp_path / "in/LABEVENTS.csv").write_text(TABLES["LABEVENTS"].replace("ITEMID", "concept"), "utf-8")
    (tmp_path / "in/OUTPUTEVENTS.csv").write_text(TABLES["OUTPUTEVENTS"].replace("ITEMID", "concept"), "utf-8")
    benchmark = MimicBenchmark(
        tmp_path / "in",
        columns={"ITEMID": "concept"},
        variables=VariableMap.from_rows([{"ITEMID": "1", "VARIABLE": "Heart Rate", "MIMIC_LABEL": "pulse"}]),
        cohort=CohortRules(minimum_age=18, split="hash"),
        phenotypes={"V5861": "Shock"},
    )
    benchmark.build(tmp_path / "out", ["phenotyping"])
    episodes = pl.read_parquet(tmp_path / "out/episodes.parquet")
    assert episodes["SUBJECT_ID"].to_list() == [1]
    assert episodes["Shock"].to_list() == [1]
    assert pl.read_parquet(tmp_path / "out/timeseries/part-0000.parquet")["Heart Rate"].to_list() == ["80"]


def test_two_stays_of_one_admission_are_counted_once(tmp_path):
    """An event without ICUSTAY_ID may be of both stays, which the times decide; it is one event all the same."""
    later = "1,10,101,carevue,MICU,MICU,7,7,2150-01-05 00:00:00,2150-01-08 00:00:00,3.0\n"
    write_tables(tmp_path / "in", [(211, 1, "80", "")], ICUSTAYS=TABLES["ICUSTAYS"] + later)
    with (tmp_path / "in/CHARTEVENTS.csv").open("a", encoding="utf-8") as file:
        file.write("1,10,,211,2150-01-06 00:00:00,90,\n1,10,7,211,2150-01-06 00:00:00,91,\n")
    cohort = CohortRules(one_stay_per_admission=False)
    result = MimicBenchmark(tmp_path / "in", cohort=cohort).build(tmp_path / "out", ["phenotyping"], export=False)
    names = ("n_events", "recovered", "icustay_missing_in_stays", "kept")
    assert [result.scalars[name] for name in names] == [4, 1, 1, 3]
    series = pl.read_parquet(tmp_path / "out/timeseries/part-0000.parquet").filter(pl.col("EPISODE") == 2)
    assert set(series.filter(pl.col("Hours") >= 0)["Heart Rate"]) == {"90"}


def icustays(**changed):
    header, first, second, _ = TABLES["ICUSTAYS"].split("\n")
    values = dict(zip(header.split(","), first.split(","), strict=True)) | changed
    return "\n".join([header, ",".join(values.values()), second, ""])


CHART = TABLES["CHARTEVENTS"]
BAD_TABLES = [
    ({"LABEVENTS": None}, FileNotFoundError, "LABEVENTS"),
    ({"CHARTEVENTS": CHART.replace("VALUE,", "WORTH,")}, ValueError, "CHARTEVENTS must have the column VALUE"),
    ({"CHARTEVENTS": CHART + "1,10,100,211,soon,80,\n"}, ValueError, "CHARTEVENTS.CHARTTIME"),
    ({"CHARTEVENTS": CHART + "one,10,100,211,2150-01-01 00:00:00,80,\n"}, ValueError, "table CHARTEVENTS"),
    ({"CHARTEVENTS": CHART + "1,10,100,211,2150-01-01 00:00:00,80,,,,\n"}, ValueError, "table CHARTEVENTS"),
    ({"CHARTEVENTS": ""}, ValueError, "CHARTEVENTS"),
    ({"CHARTEVENTS_1": CHART, "chartevents_1": CHART}, ValueError, "CHARTEVENTS once"),
    ({"ICUSTAYS": icustays(INTIME="yesterday")}, ValueError, "ICUSTAYS.INTIME"),
    ({"ICUSTAYS": icustays(INTIME="")}, ValueError, "ICUSTAYS.INTIME must have no gaps"),
    ({"ICUSTAYS": icustays(OUTTIME="2149-01-01 00:00:00")}, ValueError, "OUTTIME must not be before INTIME"),
    ({"ICUSTAYS": icustays(ICUSTAY_ID="200")}, ValueError, "ICUSTAY_ID must be unique, got 200"),
    ({"ICUSTAYS": icustays(LOS="long")}, ValueError, "ICUSTAYS.LOS"),
    ({"ICUSTAYS": icustays(LOS="-1")}, ValueError, "ICUSTAYS.LOS must hold numbers of days, not below 0"),
    ({"ICUSTAYS": TABLES["ICUSTAYS"].split("\n")[0] + "\n"}, ValueError, "at least one stay"),
    (
        {"PATIENTS": TABLES["PATIENTS"] + "1,F,2080-01-01 00:00:00,\n"},
        ValueError,
        "PATIENTS must hold each SUBJECT_ID once",
    ),
]


@pytest.mark.parametrize(("changed", "kind", "text"), BAD_TABLES)
def test_bad_tables(changed, kind, text, tmp_path):
    with pytest.raises(kind, match=text) as caught:
        MimicBenchmark(write_tables(tmp_path / "in", **changed)).build(tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda t, o: MimicBenchmark(t / "none"), FileNotFoundError, "folder"),
        (lambda t, o: MimicBenchmark(t, columns={"ITEM": "x"}), ValueError, "columns"),
        (lambda t, o: MimicBenchmark(t, variables={1: "pH"}), TypeError, "variables"),
        (lambda t, o: MimicBenchmark(t, cohort="all"), TypeError, "cohort"),
        (lambda t, o: MimicBenchmark(t, phenotypes={"1": "Cold"}), ValueError, "phenotypes"),
        (lambda t, o: MimicBenchmark(t).build(o, "phenotyping"), TypeError, "tasks"),
        (lambda t, o: MimicBenchmark(t).build(o, ["readmission"]), ValueError, "tasks"),
        (lambda t, o: MimicBenchmark(t).build(o, []), ValueError, "tasks"),
        (lambda t, o: MimicBenchmark(t).build(o, compat="2020"), ValueError, "compat"),
        (lambda t, o: MimicBenchmark(t).build(o, compat=2019), TypeError, "compat"),
        (lambda t, o: MimicBenchmark(t).build(t), ValueError, "out"),
        (lambda t, o: MimicBenchmark(t).build(o, events_per_part=0), ValueError, "events_per_part"),
        (lambda t, o: CohortRules(minimum_age=-1), ValueError, "minimum_age"),
        (lambda t, o: CohortRules(split="random"), ValueError, "split"),
        (lambda t, o: CleaningRules(limit_age="yes"), ValueError, "limit_age"),
        (lambda t, o: VariableMap({}), ValueError, "items"),
        (lambda t, o: VariableMap({1: "Pulse"}), ValueError, "items"),
        (lambda t, o: VariableMap({"1": "pH"}), TypeError, "items"),
        (lambda t, o: VariableMap.from_rows([{"ITEMID": 1}]), ValueError, "VARIABLE"),
    ],
)
def test_bad_arguments(call, kind, text, tmp_path):
    with pytest.raises(kind, match=text):
        call(write_tables(tmp_path / "in"), tmp_path / "out")


def test_resume_keeps_what_is_finished(tmp_path):
    tables, out = write_tables(tmp_path / "in"), tmp_path / "out"
    MimicBenchmark(tables).build(out, ["phenotyping"])
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    result = MimicBenchmark(tables).build(out, ["phenotyping", "multitask"], resume=True)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert result.scalars["n_multitask_train"] == 2
    with pytest.raises(ValueError, match="cleaning changed"):
        MimicBenchmark(tables).build(out, ["phenotyping"], "clean", resume=True)
    (out / "build.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match="is no record of a build"):
        MimicBenchmark(tables).build(out, ["phenotyping"], resume=True)


@pytest.mark.slow
def test_killed_builds_end_well(tables, built, tmp_path):
    command = [sys.executable, "-m", "natwise", "mimic", "build", str(tables), str(tmp_path), "--resume"]
    check_resume(command, tmp_path / "build.json", kills=3, seconds=0.2)
    assert same_build(built[0], tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path):
    tables, out = write_tables(tmp_path / "in"), tmp_path / "out"
    code = (
        "import resource, sys; from natwise.timeseries import MimicBenchmark as M\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: M(sys.argv[1]).build(sys.argv[2])\n"
        "except OSError as error: print(error); sys.exit(28)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tables, out], capture_output=True, text=True, check=False)
    assert run.returncode == 28, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]
    MimicBenchmark(tables).build(out, resume=True)
