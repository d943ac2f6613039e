// The page of `detrkit serve`: pictures go to the server one by one; thresholds and classes are applied here.

import { maskArea } from "./masks.js";
import { Failure, detect, loadModels, token } from "./server.js";
import { classColor, drawPicture, followInput, onViewChange, setView, zoomBy } from "./view.js";

const MOST_CLASSES = 12; // of a list that shows absent ones without being asked
const MOST_TRIES = 5; // of a picture for which the server is too busy
const $ = (id) => document.getElementById(id);
const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

let models = [];
let panes = []; // one for each model that is looked at: the model's name and the pane's elements
let classNumbers = new Map(); // of the models in panes, by name: choose colours
const pictures = []; // name, blob, url, answers by model: { failure } or what the server found
let current = null;
let bitmap = null; // pixels of the current picture; only of this one, for pictures are large
const switchedOff = new Set(); // names of classes
let working = false;

// --- models -----------------------------------------------------------------------------------------------------

async function start() {
  try {
    models = await loadModels();
  } catch (failure) {
    if (failure.status === 401) askToken();
    else showProblem(failure.message, start);
    return;
  }
  $("problem").hidden = true;
  const options = models.map(({ name }) => new Option(name, name));
  $("model-0").replaceChildren(...options);
  $("compare").hidden = models.length < 2;
  $("model-1").replaceChildren(new Option("no other", ""), ...options.map((option) => option.cloneNode(true)));
  chooseModels();
}

const modelOf = (name) => models.find((model) => model.name === name);

/** Make a pane for each chosen model, and ask it about pictures that it has not seen. */
function chooseModels() {
  const names = [...new Set([$("model-0").value, $("model-1").value])].filter(Boolean);
  panes = names.map(makePane);
  $("panes").replaceChildren(...panes.map(({ root }) => root));
  classNumbers = new Map();
  for (const name of names) {
    for (const each of modelOf(name).classes) if (!classNumbers.has(each)) classNumbers.set(each, classNumbers.size);
  }
  makeClassList();
  showOwnThreshold();
  render();
  work();
}

function makePane(name) {
  const root = $("pane").content.cloneNode(true).firstElementChild;
  const find = (selector) => root.querySelector(selector);
  const canvas = find("canvas");
  followInput(canvas, () => sizeOf(current, name));
  new ResizeObserver(drawAll).observe(canvas);
  find(".failure button").addEventListener("click", () => {
    for (const { answers } of pictures) if (answers[name]?.failure?.passing) delete answers[name];
    render();
    work();
  });
  for (const button of root.querySelectorAll("[data-kind]")) {
    button.addEventListener("click", () => download(name, button.dataset.kind));
  }
  return { name, root, find, canvas };
}

const sizeOf = (picture, name) => {
  const answer = picture?.answers[name];
  return answer?.width ? answer : bitmap ?? { width: 4, height: 3 };
};

// --- pictures ---------------------------------------------------------------------------------------------------

function addFiles(files) {
  if (!files.length) return showProblem("That was no file. The server fetches no addresses: save the picture first.");
  const added = [...files].map((blob) => ({ name: freeName(blob.name), blob, url: URL.createObjectURL(blob), answers: {} }));
  pictures.push(...added);
  $("problem").hidden = true;
  select(added[0]);
  work();
}

/** A name that no other picture has: what is pasted is always called image.png. */
function freeName(name) {
  const [, stem, suffix] = name.match(/^(.*?)(\.[^.]*)?$/s);
  const taken = (each) => pictures.some((picture) => picture.name === each);
  let free = name;
  for (let number = 2; taken(free); number++) free = `${stem} (${number})${suffix ?? ""}`;
  return free;
}

async function select(picture) {
  current = picture;
  bitmap?.close();
  bitmap = null;
  setView(1, 0.5, 0.5);
  render();
  if (!picture) return;
  // null: a format that only the server knows, such as TIFF
  const pixels = await createImageBitmap(picture.blob).catch(() => null);
  if (current !== picture) return pixels?.close();
  bitmap = pixels;
  render();
}

function remove(gone) {
  const place = pictures.indexOf(gone[0]);
  for (const picture of gone) URL.revokeObjectURL(picture.url);
  pictures.splice(0, pictures.length, ...pictures.filter((picture) => !gone.includes(picture)));
  select(pictures[Math.min(place, pictures.length - 1)] ?? null);
  ($("strip").querySelector("[aria-current]") ?? $("choose")).focus();
}

/** Ask for what is missing, one picture at a time, the current one first. */
async function work() {
  if (working) return;
  working = true;
  for (let job = nextJob(); job && (await ask(job)); job = nextJob());
  working = false;
}

function nextJob() {
  for (const picture of current ? [current, ...pictures] : pictures) {
    const pane = panes.find(({ name }) => !picture.answers[name]);
    if (pane) return { picture, name: pane.name };
  }
  return null;
}

/** Get one answer. False: nothing more can be asked before there is a token. */
async function ask({ picture, name }, tries = 1) {
  try {
    picture.answers[name] = await detect(picture, modelOf(name));
    await checkVersion(picture.answers[name]);
  } catch (error) {
    const failure = error instanceof Failure ? error : new Failure(-1, `This page failed: ${error.message}`);
    if (failure.status === 401) return askToken();
    if (failure.status === 429 && tries < MOST_TRIES) {
      const waitS = failure.waitS || 1;
      picture.waiting = `The server is busy; trying again in ${waitS} s`;
      render();
      await sleep(waitS);
      picture.waiting = "";
      return ask({ picture, name }, tries + 1);
    }
    const again = failure.waitS ? ` It asks to wait for ${failure.waitS} s.` : "";
    picture.answers[name] = { failure: { message: failure.message + again, passing: failure.passing } };
  }
  render();
  return true;
}

/** Answers of a model that was reloaded meanwhile may have other classes than those before. */
async function checkVersion({ model, version }) {
  if (version === modelOf(model).version) return;
  models = await loadModels();
  for (const { answers } of pictures) {
    if (answers[model]?.version && answers[model].version !== version) {
      answers[model] = { failure: { message: "An older version of the model answered here.", passing: true } };
    }
  }
  chooseModels();
}

// --- what is shown ----------------------------------------------------------------------------------------------

/** Detections from the threshold on, of all classes. The model's own thresholds count calibrated scores, as the server's do. */
function taken(answer) {
  if (!answer?.detections) return [];
  const own = $("own").checked;
  const { thresholds } = modelOf(answer.model);
  const { temperature = 1, bias = 0, classes } = thresholds;
  const leastOfAll = Math.fround(own ? thresholds.default : $("threshold").valueAsNumber); // scores are float32
  return answer.detections.filter((one) => {
    one.shown = own ? calibrated(one.score, temperature, bias) : one.score;
    one.color = classColor(classNumbers.get(one.class_name) ?? one.class_id);
    one.text = `${one.class_name} ${one.shown.toFixed(2)}`;
    return one.shown >= (own && classes ? classes[one.class_id].score : leastOfAll);
  });
}

function calibrated(score, temperature, bias) {
  if (temperature === 1 && bias === 0) return score;
  const inside = Math.min(1 - 1e-16, Math.max(1e-38, score));
  return 1 / (1 + Math.exp(-((Math.log(inside) - Math.log1p(-inside)) / temperature + bias)));
}

const shown = (answer) => taken(answer).filter((one) => !switchedOff.has(one.class_name));

function countByClass(detections) {
  const counts = new Map();
  for (const { class_name: name } of detections) counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}

const inWords = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function render() {
  $("threshold-value").textContent = $("threshold").valueAsNumber.toFixed(2);
  for (const id of ["strip-tools", "zoom-tools", "panes"]) $(id).hidden = !current;
  $("empty").hidden = Boolean(current);
  const segmented = pictures.some(({ answers }) =>
    Object.values(answers).some(({ detections = [] }) => detections.some((one) => one.segmentation?.counts)),
  );
  $("masks-option").hidden = !segmented;
  renderStrip();
  panes.forEach(renderPane);
  renderClasses();
  sayStatus();
  drawAll();
}

function renderStrip() {
  const items = [...$("strip").children];
  for (const item of items) if (!pictures.includes(item.picture)) item.remove();
  for (const picture of pictures) {
    const item = items.find((each) => each.picture === picture) ?? addToStrip(picture);
    const [button] = item.children;
    const answers = panes.map(({ name }) => picture.answers[name]);
    const failed = answers.some((answer) => answer?.failure);
    const count = answers[0] && !failed ? shown(answers[0]).length : null;
    const mark = failed ? "!" : count ?? "…";
    button.toggleAttribute("aria-current", picture === current);
    button.setAttribute("aria-label", `${picture.name}: ${failed ? "failed" : count === null ? "waits" : inWords(count, "object")}`);
    button.lastChild.textContent = mark;
    button.lastChild.classList.toggle("failed", failed);
  }
}

function addToStrip(picture) {
  const item = make("li", make("button", make("img"), make("span")));
  const [button] = item.children;
  Object.assign(button, { type: "button", title: picture.name });
  button.addEventListener("click", () => select(picture));
  button.addEventListener("keydown", (event) => event.key === "Delete" && remove([picture]));
  Object.assign(button.firstChild, { src: picture.url, alt: picture.name });
  button.lastChild.className = "count";
  item.picture = picture;
  $("strip").append(item);
  return item;
}

/** An element with children; texts are never read as HTML. */
function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

function renderPane({ name, find, canvas }) {
  const answer = current?.answers[name];
  const model = modelOf(name);
  const detections = shown(answer);
  find("h2").textContent = name;
  const { version, runtime, precision } = answer?.version ? answer : model;
  const state = answer ? "" : current?.waiting || "waiting for the server…";
  const unseen = answer?.detections && !bitmap ? "the browser cannot show this format" : "";
  find(".facts").textContent = [`version ${version}`, runtime, precision, unseen, state].filter(Boolean).join(" · ");
  canvas.setAttribute("aria-label", `${current?.name}: ${inWords(detections.length, "detection")} by ${name}. Keys: + and - zoom, 0 fits, arrows move.`);

  canvas.hidden = Boolean(answer?.failure) && !bitmap;
  find(".failure").hidden = !answer?.failure;
  find(".failure p").textContent = answer?.failure?.message ?? "";
  find(".failure button").hidden = !answer?.failure?.passing;

  for (const selector of [".latency", "details", ".downloads"]) find(selector).hidden = !answer?.detections;
  if (!answer?.detections) return;
  renderLatency(find, answer);
  find("summary").textContent = inWords(detections.length, "object");
  find("tbody").replaceChildren(
    ...detections.map(({ class_name, shown: score, box_xyxy: box }) =>
      make("tr", make("td", class_name), make("td", score.toFixed(3)), make("td", box.map((v) => v.toFixed(1)).join(", "))),
    ),
  );
}

/** Stages of the server, and what is left of the time until the answer was here. */
function renderLatency(find, { timings_ms: timings, roundTripMs }) {
  const stages = Object.entries(timings);
  const rest = Math.max(0, roundTripMs - stages.reduce((sum, [, ms]) => sum + ms, 0));
  stages.push(["network and rest", rest]);
  const total = make("div", make("dt", "total"), make("dd", `${roundTripMs.toFixed(0)} ms`));
  find(".bar").replaceChildren(
    ...stages.map(([, ms], number) => {
      const part = make("span");
      part.className = `stage-${number % 6}`;
      part.style.flexGrow = ms;
      return part;
    }),
  );
  find(".latency dl").replaceChildren(
    ...stages.map(([stage, ms], number) => {
      const swatch = make("span");
      swatch.className = `swatch stage-${number % 6}`;
      return make("div", swatch, make("dt", stage), make("dd", `${ms.toFixed(1)} ms`));
    }),
    total,
  );
}

function drawAll() {
  if (!current) return;
  for (const { name, canvas } of panes) {
    const size = sizeOf(current, name);
    canvas.style.aspectRatio = size.width / size.height;
    const options = { labels: $("labels").checked, masks: $("masks").checked };
    drawPicture(canvas, bitmap, size, shown(current.answers[name]), options);
  }
}

let statusTimer = 0;

/** Say what was found, once the slider rests: each change is read aloud. */
function sayStatus() {
  clearTimeout(statusTimer);
  statusTimer = setTimeout(() => {
    const parts = panes.map(({ name }) => {
      const answer = current?.answers[name];
      const detections = shown(answer);
      const kinds = [...countByClass(detections)].map(([each, count]) => `${count} ${each}`).join(", ");
      const found = `${inWords(detections.length, "object")}${kinds && ` (${kinds})`}`;
      return (panes.length > 1 ? `${name}: ` : "") + (answer ? (answer.failure ? "failed" : found) : "waiting");
    });
    const failed = pictures.filter((each) => each !== current && panes.some(({ name }) => each.answers[name]?.failure));
    const others = failed.length ? ` · ${inWords(failed.length, "other picture")} failed` : "";
    const text = current ? `${current.name} · ${parts.join(" · ")}${others}` : "";
    if ($("status").textContent !== text) $("status").textContent = text;
  }, 150);
}

// --- threshold and classes --------------------------------------------------------------------------------------

function showOwnThreshold() {
  if ($("own").checked && panes.length) $("threshold").value = modelOf(panes[0].name).thresholds.default;
}

function makeClassList() {
  $("absent-option").hidden = classNumbers.size <= MOST_CLASSES;
  $("classes").replaceChildren(
    ...[...classNumbers].map(([name, number]) => {
      const box = Object.assign(make("input"), { type: "checkbox", checked: !switchedOff.has(name) });
      const [swatch, text, count] = ["swatch", "name", "count"].map((kind) => Object.assign(make("span"), { className: kind }));
      swatch.style.background = `rgb(${classColor(number)})`;
      text.textContent = name;
      box.addEventListener("change", () => {
        if (box.checked) switchedOff.delete(name);
        else switchedOff.add(name);
        render();
      });
      const item = make("li", make("label", box, swatch, text, count));
      item.name = name;
      return item;
    }),
  );
}

function renderClasses() {
  const counts = panes.map(({ name }) => countByClass(taken(current?.answers[name])));
  const all = classNumbers.size <= MOST_CLASSES || $("absent").checked;
  for (const item of $("classes").children) {
    const found = counts.map((each) => each.get(item.name) ?? 0);
    const none = found.every((count) => count === 0);
    item.querySelector(".count").textContent = current ? found.join(" | ") : "";
    item.firstChild.classList.toggle("none", none);
    item.hidden = none && !all && !switchedOff.has(item.name);
  }
}

function switchClasses(on) {
  for (const name of classNumbers.keys()) {
    if (on) switchedOff.delete(name);
    else switchedOff.add(name);
  }
  for (const box of $("classes").querySelectorAll("input")) box.checked = on;
  render();
}

// --- downloads --------------------------------------------------------------------------------------------------

/** Save what is shown of all pictures: a data set with its classes and scores, or the list of results that COCO's tools take. */
function download(name, kind) {
  const { classes, category_ids: ids = [], version } = modelOf(name);
  const idOf = (number) => ids[number] ?? number;
  const answered = pictures.filter(({ answers }) => answers[name]?.detections);
  const images = answered.map((picture, i) => {
    const { width, height } = picture.answers[name];
    return { id: i + 1, file_name: picture.name, width, height };
  });
  const found = answered.flatMap((picture, i) =>
    shown(picture.answers[name]).map(({ box_xyxy: [left, top, right, bottom], shown: score, class_id, segmentation }) => {
      const result = { image_id: i + 1, category_id: idOf(class_id), bbox: [left, top, right - left, bottom - top], score };
      return segmentation ? { ...result, segmentation } : result;
    }),
  );
  const annotations = found.map((one, i) => {
    const area = one.segmentation?.counts ? maskArea(one.segmentation) : one.bbox[2] * one.bbox[3];
    return { id: i + 1, segmentation: [], ...one, area, iscrowd: 0 };
  });
  const categories = classes.map((each, number) => ({ id: idOf(number), name: each }));
  const threshold = $("own").checked ? "the model's own" : $("threshold").valueAsNumber;
  const info = { description: "Detections by detrkit serve", model: name, version, threshold };
  const content = kind === "results" ? found : { info, images, categories, annotations };

  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  Object.assign(make("a"), { href: url, download: `${name}-${kind}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  const left = pictures.length - answered.length;
  const without = left ? `, without ${inWords(left, "picture")} that has no answer` : "";
  $("status").textContent = `Saved ${inWords(found.length, "object")} of ${inWords(answered.length, "picture")}${without}.`;
}

// --- token, camera, problems ------------------------------------------------------------------------------------

/** Ask for a token; false, for what asked for it has to wait. */
function askToken() {
  if (token.get()) $("token-reason").textContent = "The server did not take this token.";
  $("open-token").hidden = false;
  if (!$("token-dialog").open) $("token-dialog").showModal();
  return false;
}

function useToken(event) {
  event.preventDefault();
  token.set($("token").value.trim());
  $("token").value = "";
  $("token-dialog").close();
  if (models.length) work();
  else start();
}

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return showProblem(
      "Browsers give the camera only to pages of HTTPS or of this machine (localhost). On a phone, Choose pictures offers the camera, too.",
    );
  }
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1920 } };
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
    $("camera-dialog").showModal();
  } catch (error) {
    const reasons = {
      NotAllowedError: "The camera is not allowed on this page; the browser's address bar can allow it.",
      NotFoundError: "There is no camera.",
      NotReadableError: "Another program uses the camera.",
    };
    showProblem(reasons[error.name] ?? `The camera failed: ${error.message}`);
  }
}

function shoot() {
  const { videoWidth: width, videoHeight: height } = $("video");
  if (!width) return; // no picture has come yet
  const canvas = Object.assign(make("canvas"), { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  canvas.toBlob((blob) => addFiles([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg", 0.95);
  $("camera-dialog").close();
}

function closeCamera() {
  $("video").srcObject?.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
}

function showProblem(text, again) {
  $("problem-text").textContent = text;
  $("again").hidden = !again;
  $("again").onclick = again;
  $("problem").hidden = false;
}

// --- events -----------------------------------------------------------------------------------------------------

const on = (id, kind, action) => $(id).addEventListener(kind, action);

for (const id of ["model-0", "model-1"]) on(id, "change", chooseModels);
on("choose", "click", () => $("files").click());
on("files", "change", () => {
  addFiles($("files").files);
  $("files").value = ""; // the same file may be chosen again
});
on("remove", "click", () => remove([current]));
on("clear", "click", () => remove([...pictures]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  addFiles(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => event.target !== $("token") && addFiles(event.clipboardData.files));

on("own", "change", () => {
  showOwnThreshold();
  render();
});
on("threshold", "input", () => {
  $("own").checked = false;
  render();
});
for (const id of ["labels", "masks"]) on(id, "change", drawAll);
on("absent", "change", renderClasses);
on("all-classes", "click", () => switchClasses(true));
on("no-classes", "click", () => switchClasses(false));

on("zoom-in", "click", () => zoomBy(1.5));
on("zoom-out", "click", () => zoomBy(1 / 1.5));
on("zoom-fit", "click", () => setView(1));
onViewChange(({ zoom }) => {
  $("zoom-value").textContent = `${Math.round(100 * zoom)} %`;
  drawAll();
});

on("open-token", "click", askToken);
on("close-token", "click", () => $("token-dialog").close());
on("token-dialog", "submit", useToken);
on("open-camera", "click", openCamera);
on("shoot", "click", shoot);
on("close-camera", "click", () => $("camera-dialog").close());
on("camera-dialog", "close", closeCamera);
on("dismiss", "click", () => ($("problem").hidden = true));

start();
