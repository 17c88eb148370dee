"""Names of the tags that Champion sets in MLflow."""

# Tags of runs; MODEL_DIGEST, CONTRACT, KEY and REASON are tags of model versions too.
KIND = "kind"  # of a run: fine_tuning, evaluation, deployment or ledger
MODEL_NAME = "champion.model_name"
MODEL_DIGEST = "champion.model_digest"
CONTRACT = "champion.contract"
CONTRACT_JSON = "champion.contract_json"
WEIGHTS = "champion.weights"
ADAPTER = "champion.adapter_sha256"
DATA = "champion.data"  # of a fine-tuning run: the raw file and its sha256, as PATH@SHA256
EXCLUDED = "champion.excluded"
FAILED_GUARD = "champion.failed_guard"  # the guard that the evaluated model failed, in the words of the gate
RESTORED = "restored_from"  # the run on another server, of which this one is a copy
KEY = "champion.key"
DECISION = "champion.decision"  # the verdict; on versions made before they had a REASON, the reason
REASON = "champion.reason"
VERSION = "champion.version"
# Tags of model versions.
IDENTITY = "champion.identity"
SCORE = "champion.score"
METRIC = "champion.metric."  # before the name of each unweighted metric
CONTRIBUTIONS = "champion.contributions"
GAIN = "champion.gain"
EVALUATION_RUN = "champion.evaluation_run"
DUPLICATE = "champion.duplicate_of"
RELEASE = "champion.release"  # the tree digest of the release folder that was assembled for it
# Of a version without all of its weights: `pruning`, then `pruned`; `lost` if a lost store was restored without them.
FILES = "champion.files"
# A tag of the ledger's experiment: the run that holds the slots.
LEDGER_RUN = "champion.ledger_run"
SUPERSEDED = "champion.superseded"  # of a ledger run that was altered: when, by whom, and the run in its place
