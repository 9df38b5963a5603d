// The page: it loads the champion, verified, and decides about what stands in the form, without the network.

import { load } from "./champion.mjs";
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // one is fastest for single rows, and more need special headers
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

const $ = (id) => document.getElementById(id);
const agent = new URLSearchParams(location.search).get("agent") ?? "flights";
const seen = `stillhouse release ${agent}`; // a champion that was withdrawn is refused from then on

async function bytes(address) {
  const answer = await fetch(address, { cache: "no-cache" }); // the browser sends the ETag of what it has
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${await answer.text()}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function start() {
  const key = new TextDecoder().decode(await bytes("key.pub"));
  const archive = await bytes(`v1/agents/${agent}/model`);
  const champion = await load(archive, { key, agent, ort, release: Number(localStorage.getItem(seen) ?? 0) });
  localStorage.setItem(seen, champion.release);
  $("columns").replaceChildren(...champion.manifest.columns.map(field));
  $("form").hidden = false;
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    decide(champion, rowOf(champion.manifest.columns)).catch(report);
  });
  const size = Math.round(archive.length / 1024);
  $("state").textContent = `${champion.version} (release ${champion.release}, ${size} KiB) is as it was signed. ` +
    "It decides in this page: nothing is sent.";
  await decide(champion, rowOf(champion.manifest.columns));
  document.body.dataset.firstDecision = performance.now();
  window.champion = champion;
}

async function decide(champion, row) {
  const began = performance.now();
  const { action, probabilities } = await champion.decide(row);
  const ms = performance.now() - began;
  $("action").textContent = action;
  $("bars").replaceChildren(...Object.entries(probabilities).map(([name, p]) => bar(name, p, name === action)));
  $("time").textContent = `decided in ${ms.toFixed(1)} ms`;
  $("result").hidden = false;
}

function bar(name, probability, isChosen) {
  const line = document.createElement("label");
  const meter = document.createElement("meter");
  meter.value = probability;
  line.className = isChosen ? "chosen" : "";
  line.append(name, meter, `${(100 * probability).toFixed(1)} %`);
  return line;
}

function field({ name, type, values }) {
  const label = document.createElement("label");
  const input = document.createElement(type === "category" ? "select" : "input");
  input.name = name;
  if (type === "category") input.append(...["", ...values].map((value) => new Option(value || "(missing)", value)));
  if (type === "number") Object.assign(input, { type: "number", step: "any", placeholder: "missing" });
  label.append(name, input);
  return label;
}

function rowOf(columns) {
  const values = new FormData($("form"));
  return Object.fromEntries(columns.map(({ name, type }) => {
    const text = values.get(name);
    return [name, text === "" ? null : type === "number" ? Number(text) : text];
  }));
}

function report(error) {
  $("state").textContent = `No decision: ${error.message}`;
  document.body.dataset.error = error.message;
}

start().catch(report);
