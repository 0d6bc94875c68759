"""Say what is wrong with a model, and how to mend it."""

import sys

from mae_hf.config.commands import DoctorConfig
from mae_hf.models.diagnosis import examine_model
from mae_hf.models.io import SavedModel
from mae_hf.models.locate import model_folders


def doctor(config: DoctorConfig) -> None:
    """Print a line for each finding, and exit with 1 if one is a fault."""
    num_faults = 0
    for folder in model_folders(config.name) or [SavedModel(config.name).folder]:
        print(folder)
        for finding in examine_model(folder):
            print(f"  {finding}", flush=True)
            num_faults += finding.severity == "fault"
    if num_faults:
        print(f"{num_faults} fault{'s' * (num_faults > 1)}: mend what is marked as a fault before you use the model")
        sys.exit(1)
    print("no fault was found")
