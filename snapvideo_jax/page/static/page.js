// The page: sends the form, follows the video that is being made, and shows what was made.

const POLL = 300; // milliseconds between two looks at a running job
const ACCEPTED = 202, CONFLICT = 409; // answers to a form: a job was started, or another one runs
const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

let job = null; // the last one that the server spoke of
let shown = null; // the video in the player
let older = null; // the number before which the gallery goes on

// ---- asking the server

async function send(path, entries) {
  const request = entries && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(entries),
  };
  const response = await fetch(path, request);
  return { status: response.status, content: await response.json() };
}

async function ask(path, entries) {
  const { status, content } = await send(path, entries);
  if (status >= 400) throw new Error(content.message);
  return content;
}

async function reporting(work) {
  try {
    await work();
  } catch (error) {
    const silent = error instanceof TypeError; // of fetch: there is no answer
    $("failure").textContent = silent
      ? "The program that makes the videos does not answer. Is it still running?"
      : sentence(error.message);
    setRunning(false);
  }
}

// ---- the form

function inputs() {
  const all = [...$("form").querySelectorAll("input")];
  return all.filter((input) => !input.closest("[hidden]"));
}

function fill(values) {
  for (const input of inputs()) if (input.name in values) input.value = values[input.name];
}

async function loadForm() {
  const { model, values } = await ask("/api/form");
  const [frames, height, width] = model.video;
  $("model").textContent =
    `Model ${model.names.join(" and ")}: ${frames} frames of ${width} × ${height} pixels`;
  $("upsampler").hidden = !("upsampler_steps" in values);
  $("frame_rate-hint").textContent = 
    `Frames per second, 0: a still. Training showed ${model.frame_rates.join(", ")}.`;
  $("prompts").replaceChildren(...model.prompts.map((prompt) => new Option(prompt)));
  fill(values);
}

function showProblems(problems) {
  for (const input of inputs()) {
    const problem = problems[input.name];
    $(`${input.name}-problem`).textContent = problem ? `This ${problem}.` : "";
    input.setAttribute("aria-invalid", Boolean(problem));
  }
  inputs().find((input) => input.name in problems)?.focus();
}

async function submit() {
  if ($("generate").getAttribute("aria-disabled") === "true") return;
  $("failure").textContent = "";
  const entries = Object.fromEntries(inputs().map((input) => [input.name, input.value]));
  const { status, content } = await send("/api/jobs", entries);
  showProblems(content.problems ?? {});
  if (content.message) $("failure").textContent = sentence(content.message);
  if (status === ACCEPTED) await follow(content);
  if (status === CONFLICT) await follow(await ask("/api/job")); // of another tab
}

// ---- the video that is being made

const isRunning = (some) => some !== null && ["running", "cancelling"].includes(some.state);

async function follow(first) {
  let next = first;
  showJob(next);
  say("The video is being made.");
  while (isRunning(next)) {
    await new Promise((resolve) => setTimeout(resolve, POLL));
    next = await ask("/api/job");
    showJob(next);
  }
  await finish(next);
}

async function cancel() {
  showJob(await ask("/api/cancel", { number: job.number }));
}

async function finish(last) {
  say(statusText(last));
  if (last.state === "failed") $("failure").textContent = sentence(last.message);
  if (last.state !== "done") return;
  await loadGallery();
  const made = $("videos").querySelector(`[data-name="${last.video}"]`);
  if (made) show(made.entry);
}

function showJob(next) {
  const quarter = (some) => (some?.of ? Math.floor((4 * some.done) / some.of) : 0);
  if (isRunning(next) && quarter(next) > quarter(job)) say(`${25 * quarter(next)} percent`);
  job = next;
  $("job").hidden = false;
  $("status").textContent = statusText(next);
  const bar = $("progress");
  if (next.of) [bar.max, bar.value] = [next.of, next.done];
  else bar.removeAttribute("value");
  const line = (note) => element("li", { textContent: sentence(note) });
  $("notes").replaceChildren(...next.notes.map(line));
  setRunning(isRunning(next));
}

function setRunning(running) {
  $("generate").setAttribute("aria-disabled", running);
  $("progress").hidden = !running;
  if (!running && document.activeElement === $("cancel")) $("generate").focus();
  $("cancel").hidden = !running;
}

function statusText({ state, of, done, stage, seconds, seconds_left: left, values }) {
  const took = duration(seconds);
  if (state === "done") return `Ready after ${took}.`;
  if (state === "cancelled") return `Cancelled after ${took}.`;
  if (state === "failed") return `No video after ${took}.`;
  if (state === "cancelling") return of ? "Cancelling ..." : "Cancelling, once it is compiled ...";
  if (!of) return `Getting ready: with new settings the model is compiled first. ${took}`;
  const name = "upsampler_steps" in values ? `, stage ${stage} of 2` : "";
  const rest = left === null ? "" : `, about ${duration(Math.ceil(left))} left`;
  return `Call ${done} of ${of} of the model${name}${rest}`;
}

// ---- the player

function show(entry) {
  shown = entry;
  $("empty").hidden = true;
  $("about").hidden = false;
  $("unplayable").textContent = "";
  const video = $("video");
  video.hidden = false;
  video.src = address(entry);
  video.setAttribute("aria-label", `Video: ${entry.values.prompt}`);
  if (!still.matches) video.play().catch(() => {}); // a newer video may have come meanwhile
  $("shown-prompt").textContent = entry.values.prompt;
  $("shown-values").textContent = summary(entry.values);
  $("command").textContent = entry.command;
  $("settings").textContent = JSON.stringify(entry.settings, null, 2);
  $("download").href = address(entry);
  $("download").setAttribute("download", `${entry.name}.mp4`);
  markShown();
}

const address = (entry) => `/videos/${entry.name}.mp4`;

function summary(values) {
  const parts = [`seed ${values.seed}`, `steps ${values.steps}`, `guidance ${values.guidance}`];
  parts.push(values.frame_rate ? `${values.frame_rate} frames a second` : "a still");
  if ("upsampler_steps" in values) {
    parts.push(`upsampler: steps ${values.upsampler_steps}, guidance ${values.upsampler_guidance}`);
  }
  return parts.join(" · ");
}

async function copy(button) {
  const source = $(button.dataset.from);
  const label = (button.dataset.label ??= button.textContent);
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied.");
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    say("Selected; copy it with the keyboard.");
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = label), 3000);
}

// ---- the gallery

async function loadGallery(before = null) {
  const page = await ask(before === null ? "/api/videos" : `/api/videos?before=${before}`);
  if (before === null) $("videos").replaceChildren();
  $("videos").append(...page.videos.map(card));
  older = page.older;
  $("older").hidden = older === null;
  $("none").hidden = $("videos").children.length > 0;
  markShown();
}

function card(entry) {
  const video = element("video", { muted: true, loop: true, playsInline: true, preload: "auto" });
  video.src = address(entry);
  const button = element("button", { type: "button", className: "video", entry });
  button.dataset.name = entry.name;
  button.append(
    video,
    element("span", { textContent: entry.values.prompt }),
    element("span", { className: "hint", textContent: summary(entry.values) }),
  );
  const play = () => still.matches || video.play().catch(() => {});
  const stop = () => video.pause();
  const on = { mouseenter: play, focus: play, mouseleave: stop, blur: stop };
  for (const [event, react] of Object.entries(on)) button.addEventListener(event, react);
  button.addEventListener("click", () => {
    show(entry);
    $("shown-prompt").focus();
  });
  const item = element("li", {});
  item.append(button);
  return item;
}

function markShown() {
  for (const button of $("videos").querySelectorAll(".video")) {
    button.setAttribute("aria-current", button.dataset.name === shown?.name);
  }
}

// ---- words

const element = (name, properties) => Object.assign(document.createElement(name), properties);

function say(text) {
  $("news").textContent = text;
}

function sentence(text) {
  const end = /[.!?]$/.test(text) ? "" : ".";
  return text[0].toUpperCase() + text.slice(1) + end;
}

function duration(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

// ---- what a person does

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  reporting(submit);
});
$("cancel").addEventListener("click", () => reporting(cancel));
$("random").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
});
$("reuse").addEventListener("click", () => {
  fill(shown.values);
  showProblems({});
  $("prompt").focus();
});
$("older").addEventListener("click", () => reporting(() => loadGallery(older)));
$("video").addEventListener("error", () => {
  $("unplayable").textContent =
    "This browser cannot play H.264 video. Download it, or open this page in another browser.";
});
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => copy(button));
}

reporting(async () => {
  await loadForm();
  await loadGallery();
  const newest = $("videos").querySelector(".video");
  if (newest) show(newest.entry);
  const last = await ask("/api/job");
  if (isRunning(last)) await follow(last);
});
