"""`make slurm-cluster`: a cluster in the foreground, for whoever wants to try reasonforge on Slurm."""

import signal
from pathlib import Path

import click

from slurm_cluster.cluster import Cluster, why_not

HOW_TO = """\
A Slurm of {nodes} nodes with {gpus} fake GPUs each is up. In another terminal:

  export SLURM_CONF={conf}
  sinfo; squeue; sacct
  srun --nodes=2 --gpus-per-node=8 hostname

Partitions: batch (the default), short (2 minutes), and low, whose jobs those of high push out. Logs: {logs}
Ctrl-C ends it with all its jobs."""


@click.command()
@click.option("--nodes", default=4, show_default=True, type=click.IntRange(1, 16), help="Nodes: node1, node2, ...")
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(0, 16), help="Fake GPUs of a node.")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Keep jobs and accounting here, and go on with what is there."
)
def main(nodes: int, gpus: int, directory: Path | None) -> None:
    """Bring a Slurm cluster up on this machine, and end it on Ctrl-C."""
    if reason := why_not():
        raise click.ClickException(reason)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    cluster = Cluster(directory, nodes=nodes, gpus=gpus)
    try:
        cluster.start()
        logs = cluster.directory / "log"
        click.echo(HOW_TO.format(nodes=nodes, gpus=gpus, conf=cluster.layout.slurm_conf, logs=logs))
        signal.pause()
    except KeyboardInterrupt:
        click.echo("ending the cluster")
    finally:
        cluster.stop(graceful=directory is not None)


main()
