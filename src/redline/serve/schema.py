"""Which server knows which field of a model configuration: a server refuses a model with a field it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from redline.errors import BadInput
from redline.records.serve import Target
from redline.serve.environment import SERVER_VERSION

SERVERS: dict[Target, str] = {"embedded": SERVER_VERSION, "container": "2.51.0"}
"""Which server a repository is rendered for unless told otherwise. For the container that is release 24.10: its server is the
embedded one's version, so all of the repository but the network's own model has been loaded by that version."""
CONTAINERS = {
    "2.51.0": "24.10", "2.52.0": "24.11", "2.53.0": "24.12", "2.54.0": "25.01", "2.55.0": "25.02", "2.56.0": "25.03",
    "2.57.0": "25.04", "2.58.0": "25.05", "2.59.0": "25.06", "2.59.1": "25.07", "2.60.0": "25.08", "2.61.0": "25.09",
    "2.62.0": "25.10", "2.63.0": "25.11", "2.64.0": "25.12", "2.65.0": "26.01", "2.66.0": "26.02", "2.67.0": "26.03",
    "2.68.0": "26.04", "2.69.0": "26.05", "2.70.0": "26.06", "2.71.0": "26.07",
}  # fmt: skip
"""Server version -> release of NVIDIA's image: TRITON_VERSION on the release branches of triton-inference-server/server."""

FIELDS = {
    "ModelConfig": "name platform backend runtime version_policy max_batch_size input output batch_input batch_output "
    "optimization dynamic_batching sequence_batching ensemble_scheduling instance_group default_model_filename "
    "cc_model_filenames metric_tags parameters model_warmup model_operations model_transaction_policy "
    "model_repository_agents response_cache",
    "ModelVersionPolicy": "latest all specific",
    "ModelVersionPolicy.Latest": "num_versions",
    "ModelVersionPolicy.All": "",
    "ModelVersionPolicy.Specific": "versions",
    "ModelInput": "name data_type format dims reshape is_shape_tensor allow_ragged_batch optional is_non_linear_format_io",
    "ModelTensorReshape": "shape",
    "ModelOutput": "name data_type dims reshape label_filename is_shape_tensor is_non_linear_format_io",
    "BatchInput": "kind target_name data_type source_input",
    "BatchOutput": "target_name kind source_input",
    "ModelOptimizationPolicy": "graph priority cuda execution_accelerators input_pinned_memory output_pinned_memory "
    "gather_kernel_buffer_threshold eager_batching",
    "ModelOptimizationPolicy.Graph": "level",
    "ModelOptimizationPolicy.Cuda": "graphs busy_wait_events graph_spec output_copy_stream",
    "ModelOptimizationPolicy.Cuda.GraphSpec": "batch_size input graph_lower_bound",
    "ModelOptimizationPolicy.Cuda.GraphSpec.Shape": "dim",
    "ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound": "batch_size input",
    "ModelOptimizationPolicy.ExecutionAccelerators": "gpu_execution_accelerator cpu_execution_accelerator",
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator": "name parameters",
    "ModelOptimizationPolicy.PinnedMemoryBuffer": "enable",
    "ModelDynamicBatching": "preferred_batch_size max_queue_delay_microseconds preserve_ordering priority_levels "
    "default_priority_level default_queue_policy priority_queue_policy",
    "ModelQueuePolicy": "timeout_action default_timeout_microseconds allow_timeout_override max_queue_size",
    "ModelSequenceBatching": "direct oldest max_sequence_idle_microseconds control_input state iterative_sequence",
    "ModelSequenceBatching.StrategyDirect": "max_queue_delay_microseconds minimum_slot_utilization",
    "ModelSequenceBatching.StrategyOldest": "max_candidate_sequences preferred_batch_size max_queue_delay_microseconds "
    "preserve_ordering",
    "ModelSequenceBatching.ControlInput": "name control",
    "ModelSequenceBatching.Control": "kind int32_false_true fp32_false_true bool_false_true data_type",
    "ModelSequenceBatching.State": "input_name output_name data_type dims initial_state use_same_buffer_for_input_output "
    "use_growable_memory",
    "ModelSequenceBatching.InitialState": "data_type dims zero_data data_file name",
    "ModelEnsembling": "step",
    "ModelEnsembling.Step": "model_name model_version input_map output_map model_namespace",
    "ModelInstanceGroup": "name kind count rate_limiter gpus secondary_devices profile passive host_policy",
    "ModelRateLimiter": "resources priority",
    "ModelRateLimiter.Resource": "name global count",
    "ModelInstanceGroup.SecondaryDevice": "kind device_id",
    "ModelParameter": "string_value",
    "ModelWarmup": "name batch_size inputs count",
    "ModelWarmup.Input": "data_type dims zero_data random_data input_data_file",
    "ModelOperations": "op_library_filename",
    "ModelTransactionPolicy": "decoupled",
    "ModelRepositoryAgents": "agents",
    "ModelRepositoryAgents.Agent": "name parameters",
    "ModelResponseCache": "enable",
}
"""Every field that server 2.51.0 knows, by message (protobuf/model_config.proto, branch r24.10); a test reads the same from the
descriptor inside the embedded server's binary."""
LATER = {"ModelConfig.model_metrics": (2, 52), "ModelEnsembling.max_inflight_requests": (2, 63)}
"""Fields that came after 2.51 and the first server with them; up to 2.71 there was no other. A message that came with a field
comes with all its own."""
OLDEST = (2, 51)


def server_number(version: str) -> tuple[int, int]:
    """(major, minor) of "2.51.0". Raises BadInput: server-version."""
    parts = version.split(".")
    try:
        number = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        number = (0, 0)
    if number < OLDEST:
        raise BadInput(
            "server-version",
            "redline does not know this Triton server version",
            got=repr(version),
            allowed=f"{OLDEST[0]}.{OLDEST[1]}.0 or later, as the server reports it",
        )
    return number


def unknown_fields(config: Any, version: str) -> Iterator[str]:
    """Paths of the fields set in a ModelConfig that this server does not know. Raises BadInput: server-version."""
    yield from _unknown(config, "", server_number(version))


def _unknown(message: Any, path: str, version: tuple[int, int]) -> Iterator[str]:
    kind = message.DESCRIPTOR.full_name.removeprefix("inference.")
    known = FIELDS.get(kind)
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        since = LATER.get(f"{kind}.{field.name}")
        if since is not None and version < since:
            yield here
        elif since is None and known is not None and field.name not in known.split():
            yield here  # newer than this table: no server is known to have it
        elif field.message_type is not None and since is None:
            for name, part in _parts(field, value):
                yield from _unknown(part, here + name, version)


def _parts(field: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The messages in a field, with what tells them apart."""
    if isinstance(value, Message):
        yield "", value
    elif not field.message_type.GetOptions().map_entry:
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif field.message_type.fields_by_name["value"].message_type is not None:
        yield from ((f"[{key}]", value[key]) for key in sorted(value))
