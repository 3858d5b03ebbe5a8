"""From a tab's inputs to its events: the live run of the page, Cancel, and the plain API endpoint.

Inputs come as the page or the client sent them (`preprocess=False`): the engine checks all of them,
so that whatever is wrong is said in its words. A run is awaited, never waited for in a thread of
Gradio's: Gradio ends it by cancelling its task or closing its iterator, and that stops the engine.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import gradio as gr
from anyio.to_thread import run_sync
from gradio.components import Component
from gradio.helpers import Examples

from styleengine.errors import Cancelled, StyleEngineError
from styleengine.stylization import Stylization
from styleengine.ui.parameter import parameter
from styleengine.ui.result import Updates, progress_words, save
from styleengine.ui.runs import Job, Report, Runner
from styleengine.ui.uploads import sentence

ENGINE_QUEUE = {"concurrency_id": "engine", "concurrency_limit": 1}
CANCELLED = "Cancelled."
STOPPING = "Stopping; what is finished is being written …"
UNEXPECTED = "The run failed with an unexpected error, which is in the server's log."
RETURNS = "Returns the result and its record. Settings that are left out take the values recommended for the model."

Prepare = Callable[[Mapping[str, Any]], Job]


class Panel(Protocol):
    """The result's side of a tab: its components, and the states of a run as Gradio updates."""

    run: gr.Button
    cancel: gr.Button
    status: gr.HTML

    @property
    def outputs(self) -> list[Any]: ...
    def waiting(self) -> Updates: ...
    def working(self, report: Report, content: Any) -> Updates: ...
    def finished(self, result: Any, content: Any) -> Updates: ...
    def stopped(self, sentence: str) -> Updates: ...
    def connect_comparison(self, run: Any) -> None: ...


def connect_page(
    name: str,
    runner: Runner,
    panel: Panel,
    prepare: Prepare,
    inputs: Mapping[str, Component],
    examples: Examples | None = None,
    *,
    keeps_partial: bool = False,
) -> None:
    """Lets Run, and a click on an example, do what `prepare` makes of the inputs; Cancel stops it.

    With `keeps_partial` a cancelled run still gives a result, so the page goes on listening to it.
    """

    # Gradio's own `cancels` ends whatever runs under the same name when the request arrives, even a
    # run started since. So a run is stopped by its ticket, which the page carries from click to run.
    carried = gr.Textbox("", visible=False)

    def wait(request: gr.Request) -> Updates:
        return {**panel.waiting(), carried: runner.admit(request, name)}

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
        run = trigger(wait, outputs=[*panel.outputs, carried], **quiet).then(
            live,
            inputs=[carried, *inputs.values()],
            outputs=panel.outputs,
            preprocess=False,
            api_name=api_name,
            api_visibility="undocumented",
            show_progress="hidden",
            trigger_mode="multiple",  # "once" would swallow a run while a cancelled one is at its last step
            **ENGINE_QUEUE,
        )
        panel.connect_comparison(run)

    start_on(panel.run.click, f"{name}_live")
    if examples:
        start_on(examples.load_input_event.then, f"{name}_example")
    panel.cancel.click(cancel, inputs=carried, outputs=[panel.run, panel.cancel, panel.status], **quiet)
    gr.on([], cancel_for_client, api_name=f"{name}_cancel", api_visibility="undocumented", queue=False)


async def _states(
    name: str, runner: Runner, panel: Panel, prepare: Callable[[], Job], request: gr.Request, ticket: Any
) -> AsyncGenerator[Updates, None]:
    """What the panel shows while a run goes on, and at its end, whatever that is."""
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
        if not runner.has_admitted(request, name):  # else the panel is the next run's already
            yield panel.stopped(CANCELLED)
    except Exception:
        yield panel.stopped(UNEXPECTED)
        raise
    finally:
        runner.forget(ticket)


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
) -> None:
    """The endpoint `/name` and its MCP tool: the inputs by name in, the PNG or MP4 and its record out.

    What is not `required` may be left out or null; it then is what the chosen model recommends.
    """
    fields = {field: parameter(component) for field, component in inputs.items()}

    async def endpoint(request: gr.Request, *values: Any) -> tuple[str, dict[str, Any]]:
        *given, progress = values
        ticket = runner.admit(request, name)
        try:
            job = await run_sync(prepare, dict(zip(inputs, given, strict=True)))
            async with aclosing(runner.follow(job, ticket, previews=False)) as outcomes:
                async for outcome in outcomes:
                    if isinstance(outcome, Report):
                        progress((outcome.step, outcome.total), desc=progress_words(outcome))
                    elif isinstance(outcome, Stylization):
                        return str(await run_sync(save, outcome, file.GRADIO_CACHE)), outcome.record()
            raise RuntimeError("a run ends with one result or an error")
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
    endpoint.__doc__ = "\n".join([f"{summary} {RETURNS}", *(["", note] if note else []), "", "Args:", *lines])
    file = result(label="Result", visible=False)
    record = gr.JSON(label="Record", visible=False)
    gr.on(
        [],
        endpoint,
        inputs=list(fields.values()),
        outputs=[file, record],
        preprocess=False,
        api_name=name,
        **ENGINE_QUEUE,
    )


def signature(names: Iterable[str], required: Collection[str]) -> inspect.Signature:
    """What Gradio reads the parameters' names from; their defaults it takes from the components."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    empty = inspect.Parameter.empty
    named = [inspect.Parameter(name, kind, default=empty if name in required else None) for name in names]
    progress = inspect.Parameter("progress", kind, default=gr.Progress())
    request = inspect.Parameter("request", kind, annotation=gr.Request)
    return inspect.Signature([request, *named, progress])


def shown(error: StyleEngineError) -> gr.Error:
    """The engine's sentence as Gradio shows and sends it."""
    return gr.Error(sentence(error), print_exception=False)
