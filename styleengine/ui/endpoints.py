"""The events of a tab: the page's run with progress, Cancel, and the API endpoint.

Inputs arrive unprocessed (`preprocess=False`); the engine checks them, so that all errors are the engine's.
A run is awaited and holds none of Gradio's threads. Gradio ends it by cancelling its task or closing its
iterator, which stops the engine.
"""

import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync
from gradio.components import Component
from gradio.helpers import Examples

from styleengine.errors import Cancelled, StyleEngineError
from styleengine.stylization import Stylization
from styleengine.ui.gpu import PARALLEL_CALLS
from styleengine.ui.panel import Panel, Updates, progress_words
from styleengine.ui.parameter import parameter
from styleengine.ui.result import save
from styleengine.ui.runs import Program, Report, Runner
from styleengine.ui.uploads import sentence

ENGINE_QUEUE = {"concurrency_id": "engine", "concurrency_limit": PARALLEL_CALLS}
CANCELLED = "Cancelled."
STOPPING = "Stopping. Writing the finished frames …"
UNEXPECTED = "The run failed with an unexpected error. See the server's log."
RETURNS = "Returns the result and its record. Omitted settings take the values recommended for the model."

Prepare = Callable[[Mapping[str, Any]], Program]


def connect_page(
    name: str,
    runner: Runner,
    panel: Panel,
    prepare: Prepare,
    inputs: Mapping[str, Component],
    examples: Examples | None = None,
    *,
    title: str,
    keeps_partial: bool = False,
) -> None:
    """Connects Run and the examples to the job that `prepare` builds from the inputs, and Cancel to stopping it.

    The browser keeps small copies of a finished run's files under the `title`, if any, and their captions.
    With `keeps_partial` a cancelled run still returns a result, so the page keeps waiting for it.
    """

    # Gradio's own `cancels` ends any run of the same event, even one that was started after the click.
    # So a run is cancelled by its ticket, which the page holds in a hidden textbox.
    ticket_box = gr.Textbox("", visible=False)

    def wait(request: gr.Request) -> Updates:
        return {**panel.waiting(), ticket_box: runner.admit(request, name)}

    async def live(request: gr.Request, ticket: Any, *values: Any) -> AsyncIterator[Updates]:
        given = dict(zip(inputs, values, strict=True))
        async with aclosing(_states(name, runner, panel, lambda: prepare(given), request, ticket)) as states:
            async for updates in states:
                yield updates

    def cancel(request: gr.Request, ticket: Any) -> Updates:
        runner.release(runner.admitted(request, name, ticket))
        return {**panel.stopped(STOPPING), panel.run: gr.skip()} if keeps_partial else panel.stopped(CANCELLED)

    def cancel_for_client(request: gr.Request) -> None:
        runner.withdraw(request, name)

    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def start_on(trigger: Callable, api_name: str) -> None:
        run = trigger(wait, outputs=[*panel.outputs, ticket_box], **quiet).then(
            live,
            inputs=[ticket_box, *inputs.values()],
            outputs=panel.outputs,
            preprocess=False,
            api_name=api_name,
            api_visibility="undocumented",
            show_progress="hidden",
            trigger_mode="multiple",  # "once" would drop a run while a cancelled one finishes its last step
            **ENGINE_QUEUE,
        )
        panel.connect_comparison(run)
        _keep_copies(run, panel, title)

    start_on(panel.run.click, f"{name}_live")
    if examples:
        start_on(examples.load_input_event.then, f"{name}_example")
    _connect_clock(name, runner, panel, ticket_box)
    panel.cancel.click(cancel, inputs=ticket_box, outputs=[panel.run, panel.cancel, panel.status], **quiet)
    gr.on([], cancel_for_client, api_name=f"{name}_cancel", api_visibility="undocumented", queue=False)


def _keep_copies(run: Any, panel: Panel, title: str) -> None:
    """After a finished run, the browser keeps small copies of its files under the `title`."""
    keep = f"(...files) => window.styleengine?.keep({json.dumps(title)}, ...files)"
    run.success(None, panel.kept(), js=keep, api_visibility="private", queue=False)


def _connect_clock(name: str, runner: Runner, panel: Panel, ticket_box: gr.Textbox) -> None:
    """On ZeroGPU, requests during a long run renew its token. They are queued, since others carry none."""

    def renew(request: gr.Request, ticket: Any) -> None:
        if ticket:
            runner.renew(runner.admitted(request, name, ticket), request)

    if panel.clock:
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        panel.clock.tick(renew, inputs=ticket_box, concurrency_limit=None, **hidden)


async def _states(
    name: str, runner: Runner, panel: Panel, prepare: Callable[[], Program], request: gr.Request, ticket: Any
) -> AsyncGenerator[Updates, None]:
    """The panel's updates during a run and at its end."""
    ticket = runner.admitted(request, name, ticket)
    try:
        job = await run_sync(prepare)
        async with aclosing(runner.follow(job, ticket, previews=True)) as outcomes:
            async for outcome in outcomes:
                state: Callable[..., Updates] = panel.working if isinstance(outcome, Report) else panel.finished
                yield await run_sync(state, outcome, job.content)
    except StyleEngineError as error:
        yield panel.stopped(sentence(error))
        raise shown(error) from None
    except Cancelled:
        if not runner.has_admitted(request, name):  # else the panel already belongs to the next run
            yield panel.stopped(CANCELLED)
    except Exception:
        yield panel.stopped(UNEXPECTED)
        raise
    finally:
        runner.forget(ticket)


def saved_with_record(outcome: Stylization, folder: str) -> tuple[str, dict[str, Any]]:
    """The path of the saved result, and its record."""
    return str(save(outcome, folder)), outcome.record()


def add_api(
    name: str,
    runner: Runner,
    prepare: Prepare,
    inputs: Mapping[str, Component],
    *,
    required: Collection[str],
    tool: str,
    summary: str,
    note: str = "",
    descriptions: Mapping[str, str],
    result: type[gr.Image | gr.Video] = gr.Image,
    returns: str = RETURNS,
    more: Sequence[Component] = (),
    finish: Callable[[Any, str], Sequence[Any]] = saved_with_record,
) -> None:
    """The endpoint `/name` and its MCP tool. Takes the inputs by name; returns the PNG or MP4 and its record.

    `finish(outcome, folder)` gives the outputs: a file, a record, and the values of `more`. Inputs that are not
    `required` may be omitted or null; the chosen model's recommended values then apply.
    """
    fields = {field: parameter(component) for field, component in inputs.items()}

    async def endpoint(request: gr.Request, *values: Any) -> tuple[Any, ...]:
        *given, progress = values
        ticket = runner.admit(request, name)
        try:
            job = await run_sync(prepare, dict(zip(inputs, given, strict=True)))
            async with aclosing(runner.follow(job, ticket, previews=False)) as outcomes:
                last: Any = None
                async for outcome in outcomes:
                    if isinstance(outcome, Report):
                        progress((outcome.step, outcome.total), desc=progress_words(outcome))
                    else:
                        last = outcome
            return tuple(await run_sync(finish, last, file.GRADIO_CACHE))
        except StyleEngineError as error:
            raise shown(error) from None
        except Cancelled:
            raise gr.Error(CANCELLED, print_exception=False) from None
        finally:
            runner.forget(ticket)

    endpoint.__name__ = tool
    endpoint.__signature__ = signature(inputs, required)  # type: ignore[attr-defined]
    endpoint.__annotations__ = {"request": gr.Request}
    lines = [f"    {field}: {descriptions[field]}" for field in inputs]
    endpoint.__doc__ = "\n".join([f"{summary} {returns}", *(["", note] if note else []), "", "Args:", *lines])
    file = result(label="Result", visible=False)
    record = gr.JSON(label="Record", visible=False)
    gr.on(
        [],
        endpoint,
        inputs=list(fields.values()),
        outputs=[file, record, *more],
        preprocess=False,
        api_name=name,
        **ENGINE_QUEUE,
    )


def signature(names: Iterable[str], required: Collection[str]) -> inspect.Signature:
    """A signature from which Gradio reads the parameter names; defaults come from the components."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    empty = inspect.Parameter.empty
    named = [inspect.Parameter(name, kind, default=empty if name in required else None) for name in names]
    progress = inspect.Parameter("progress", kind, default=gr.Progress())
    request = inspect.Parameter("request", kind, annotation=gr.Request)
    return inspect.Signature([request, *named, progress])


def shown(error: StyleEngineError) -> gr.Error:
    """The engine's error as a Gradio error."""
    return gr.Error(sentence(error), print_exception=False)
