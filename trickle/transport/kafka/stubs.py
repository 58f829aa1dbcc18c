"""The AdminClient's names and the types of its calls, which the library's stubs leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka.admin import (
    AclOperation,  # pyright: ignore[reportPrivateImportUsage]
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage] - documented at this place
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    OffsetSpec,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from confluent_kafka import IsolationLevel, TopicCollection
    from confluent_kafka import TopicPartition as Partition
    from confluent_kafka.admin import (
        ClusterMetadata,  # pyright: ignore[reportPrivateImportUsage]
        ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
        ConsumerGroupDescription,  # pyright: ignore[reportPrivateImportUsage]
        ListOffsetsResultInfo,  # pyright: ignore[reportPrivateImportUsage]
        TopicDescription,  # pyright: ignore[reportPrivateImportUsage]
    )

__all__ = [
    "AclOperation",
    "AdminClient",
    "ConfigResource",
    "NewTopic",
    "OffsetSpec",
    "ResourceType",
    "TypedAdmin",
]


class TypedAdmin(Protocol):
    """What is used of ``confluent_kafka.admin.AdminClient``; timeouts are seconds."""

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> ClusterMetadata: ...

    def describe_topics(
        self,
        topics: TopicCollection,
        *,
        request_timeout: float,
        include_authorized_operations: bool = False,
    ) -> dict[str, Future[TopicDescription]]: ...

    def describe_configs(
        self, resources: Sequence[ConfigResource], *, request_timeout: float
    ) -> dict[ConfigResource, Future[dict[str, ConfigEntry]]]: ...

    def create_topics(
        self, new_topics: Sequence[NewTopic], *, request_timeout: float
    ) -> dict[str, Future[None]]: ...

    def delete_topics(
        self, topics: Sequence[str], *, request_timeout: float
    ) -> dict[str, Future[None]]: ...

    def delete_records(
        self, before: Sequence[Partition], *, request_timeout: float
    ) -> dict[Partition, Future[object]]: ...

    def list_offsets(
        self,
        wanted: Mapping[Partition, Any],  # the library's OffsetSpec makes its kinds at run time
        *,
        isolation_level: IsolationLevel,
        request_timeout: float,
    ) -> dict[Partition, Future[ListOffsetsResultInfo]]: ...

    def describe_consumer_groups(
        self, group_ids: Sequence[str], *, request_timeout: float
    ) -> dict[str, Future[ConsumerGroupDescription]]: ...

    def poll(self, timeout: float) -> int: ...
