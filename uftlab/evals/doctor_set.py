"""stub"""
from uftlab.files import DATA
STORED = DATA / "results" / "doctor.json.gz"
