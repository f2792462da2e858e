"""`virtha image`: what VMs can be created from."""

from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.session import show_list
from virtha.cli.views import IMAGE

app = typer.Typer(no_args_is_help=True, help="Images that VMs can be created from.")


@app.callback()
def _group() -> None:
    """Images that VMs can be created from: files below a storage domain's images directory."""


@app.command("list")
def list_images(
    ctx: typer.Context, storage: str | None = typer.Option(None, help="Only of this domain.")
) -> None:
    """List images of all storage domains."""

    def fetch(client: Client) -> list[Any]:
        domains = (
            [client.get(f"/v1/storage-domains/{ref(storage, field='--storage')}")]
            if storage
            else client.items("/v1/storage-domains")
        )
        return [
            {**image, "storage_domain": item["domain"]["name"]}
            for item in domains
            for image in item["images"]
        ]

    show_list(ctx, fetch, IMAGE)
