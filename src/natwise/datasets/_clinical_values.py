"""What the synthetic tables are made of: columns, vital signs, scores."""

from __future__ import annotations

from typing import NamedTuple

HEADERS = {
    "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
    "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION "
    "DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS "
    "HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
    "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT FIRST_WARDID LAST_WARDID "
    "INTIME OUTTIME LOS",
    "DIAGNOSES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "D_ICD_DIAGNOSES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
    "CHARTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE VALUENUM VALUEUOM "
    "WARNING ERROR RESULTSTATUS STOPPED",
    "LABEVENTS": "ROW_ID SUBJECT_ID HADM_ID ITEMID CHARTTIME VALUE VALUENUM VALUEUOM FLAG",
    "OUTPUTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID CHARTTIME ITEMID VALUE VALUEUOM STORETIME CGID STOPPED "
    "NEWBOTTLE ISERROR",
}


class Vital(NamedTuple):
    """How a variable is drawn: mean, spread over patients and readings, slope with severity, hours between readings."""

    mean: float
    patient_sd: float
    noise_sd: float
    slope: float
    gap: float
    decimals: int


VITALS = {
    "Heart Rate": Vital(86, 10, 6, 8, 1, 0),
    "Systolic blood pressure": Vital(120, 12, 9, -9, 1, 0),
    "Diastolic blood pressure": Vital(60, 8, 6, -4, 1, 0),
    "Mean blood pressure": Vital(78, 8, 6, -5, 1, 0),
    "Respiratory rate": Vital(18, 3, 3, 3, 1, 0),
    "Oxygen saturation": Vital(97, 1, 1.5, -1.2, 1, 0),
    "Temperature": Vital(36.9, 0.3, 0.3, 0.2, 4, 1),
    "Glucose": Vital(130, 25, 20, 10, 6, 0),
    "pH": Vital(7.38, 0.03, 0.03, -0.04, 8, 2),
    "Fraction inspired oxygen": Vital(45, 8, 5, 8, 6, 0),
    "Weight": Vital(80, 15, 1, 0, 24, 1),
    "Height": Vital(170, 9, 0, 0, 1e9, 0),
    "Capillary refill rate": Vital(0, 0, 0, 0, 4, 0),
}
# Items (CareVue, MetaVision) and the texts of each score, from worst to best.
SCORES: dict[str, tuple[tuple[int, int], dict[str, tuple[str, ...]]]] = {
    "eye": (
        (184, 220739),
        {
            "carevue": ("1 No Response", "2 To pain", "3 To speech", "4 Spontaneously"),
            "metavision": ("None", "To Pain", "To Speech", "Spontaneously"),
        },
    ),
    "motor": (
        (454, 223901),
        {
            "carevue": (
                *("1 No Response", "2 Abnorm extensn", "3 Abnorm flexion", "4 Flex-withdraws"),
                *("5 Localizes Pain", "6 Obeys Commands"),
            ),
            "metavision": (
                *("No response", "Abnormal extension", "Abnormal Flexion", "Flex-withdraws"),
                *("Localizes Pain", "Obeys Commands"),
            ),
        },
    ),
    "verbal": (
        (723, 223900),
        {
            "carevue": ("1.0 ET/Trach", "2 Incomp sounds", "3 Inapprop words", "4 Confused", "5 Oriented"),
            "metavision": (
                *("No Response-ETT", "Incomprehensible sounds", "Inappropriate Words", "Confused", "Oriented"),
            ),
        },
    ),
}
