// The champion in a web page: its archive is verified with a pinned key, its manifest read, and rows are decided.
//
// The same rules as `variant.py`, `values.py` and `verifying.py`, for rows as JSON has them. Nothing of an archive is
// used before its signature, its release and its files are verified. Works in browsers and in Node 20:
//
//     const champion = await load(archive, { key, agent: "flights", release: 7, ort });
//     await champion.decide({ temp: 3.5, origin: "JFK" }); // { action: "late", probabilities: { on_time: 0.2, late: 0.8 } }

const PADDING = 0, UNKNOWN = 1, MAX_WORD = 100, MAX_BYTES = 2 ** 28;

export class NotVerified extends Error {}
export class InputError extends Error {}

/** The verified champion of an archive.
 *
 * @param {Uint8Array} archive the `.tar.gz` of GET /v1/agents/…/model
 * @param {object} pinned `key`: public key, PEM; `agent`; `release`: the largest number seen so far; `ort`: ONNX Runtime
 */
export async function load(archive, { key, agent, release = 0, ort }) {
  const { files, version, number } = await verify(archive, { key, agent, release });
  const manifest = JSON.parse(decode(files["manifest.json"]));
  const session = await ort.InferenceSession.create(files["model.onnx"], { executionProviders: ["wasm"] });
  return new Champion(manifest, session, ort, version, number);
}

class Champion {
  constructor(manifest, session, ort, version, release) {
    Object.assign(this, { manifest, session, ort, version, release, encoder: new Encoder(manifest.columns) });
  }

  /** The most probable action of one row, with the probability of every action. */
  async decide(row) {
    const values = this.encoder.encode(row);
    const input = new this.ort.Tensor("float32", values, [1, values.length]);
    const output = await this.session.run({ [this.session.inputNames[0]]: input });
    const probabilities = Array.from(output[this.session.outputNames[0]].data);
    const best = probabilities.indexOf(Math.max(...probabilities));
    const named = this.manifest.actions.map((action, index) => [action, probabilities[index]]);
    return { action: this.manifest.actions[best], probabilities: Object.fromEntries(named) };
  }
}

// ------------------------------------------------------------------------- rows

/** Encodes a row as `variant.py` does: numbers, then codes of categories, then token ids of texts, as float32. */
export class Encoder {
  constructor(columns) {
    this.columns = columns.map((column) => ({ ...column }));
    for (const column of this.columns) {
      if (column.type === "category") column.codes = new Map(column.values.map((value, index) => [value, index + 1]));
      if (column.type === "text") column.pieces = new WordPiece(column.tokens);
    }
  }

  encode(row) {
    const values = [];
    for (const { name, type, codes, pieces, length } of this.columns) {
      if (!Object.hasOwn(row, name)) throw new InputError(`column ${name} is missing`);
      if (type === "number") values.push(numberOf(row[name], name));
      else if (type === "category") values.push(codes.get(textOf(row[name], name)) ?? 0);
      else {
        const ids = pieces.ids(textOf(row[name], name) ?? "").slice(0, length);
        values.push(...ids, ...new Array(length - ids.length).fill(PADDING));
      }
    }
    return Float32Array.from(values);
  }
}

const NUMBER = /^(?: *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *)$/;

function numberOf(value, name) {
  if (value === null || Number.isNaN(value)) return NaN;
  const isNumber = ["number", "boolean"].includes(typeof value) || (typeof value === "string" && NUMBER.test(value));
  if (!isNumber) throw new InputError(`column ${name} must be numeric: ${JSON.stringify(value)} is no number`);
  const number = Math.fround(Number(value));
  if (!Number.isFinite(number)) throw new InputError(`column ${name} is infinite, or too large for float32`);
  return number;
}

/** A value as text by the rule of `values.py`; null if it is missing. */
export function textOf(value, name = "") {
  if (value === null || Number.isNaN(value)) return null;
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return value ? "true" : "false";
  if (typeof value !== "number") throw new InputError(`column ${name}: ${JSON.stringify(value)} is no text`);
  if (!Number.isFinite(value)) throw new InputError(`column ${name}: an infinite number is no text`);
  if (Number.isInteger(value) && Math.abs(value) >= 2 ** 53) {
    throw new InputError(`column ${name}: ${value} may have been another whole number: write it as a text`);
  }
  const [digits, exponent] = value.toExponential().split("e");
  return Number.isInteger(value) || exponent >= -4 ? String(value) : `${digits}e-${exponent.slice(1).padStart(2, "0")}`;
}

/** Splits texts into BERT's basic words, and each word into the longest known tokens. */
class WordPiece {
  constructor(tokens) {
    this.known = new Map(tokens.map((token, index) => [token, index]).filter(([, index]) => index > UNKNOWN));
    this.longest = Math.max(0, ...[...this.known.keys()].map((token) => [...token].length));
  }

  ids(text) {
    return basicWords(text).flatMap((word) => this.split([...word]));
  }

  split(letters) {
    const ids = [];
    for (let begin = 0; begin < letters.length && letters.length <= MAX_WORD; ) {
      let end = Math.min(letters.length, begin + this.longest);
      const token = () => this.known.get((begin ? "##" : "") + letters.slice(begin, end).join(""));
      while (end > begin && token() === undefined) end--;
      if (end === begin) return [UNKNOWN];
      ids.push(token());
      begin = end;
    }
    return letters.length > MAX_WORD ? [UNKNOWN] : ids;
  }
}

export function basicWords(text) {
  let cleaned = Array.from(text, clean).join("");
  // eslint-disable-next-line no-control-regex
  if (/[^\x00-\x7f]/.test(cleaned)) cleaned = cleaned.normalize("NFD").replace(/\p{Mn}/gu, "");
  const lower = Array.from(cleaned, (letter) => letter.toLowerCase()).join("");
  return lower.replace(/[!-/:-@[-`{-~]|(?![\x00-\x7f])\p{P}/gu, " $& ").split(/\s+/u).filter(Boolean);
}

function clean(letter) {
  if ("\t\n\r".includes(letter)) return " ";
  if (letter === "\ufffd" || /[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/u.test(letter)) return "";
  if (/\s/u.test(letter)) return " ";
  return CHINESE.test(letter) ? ` ${letter} ` : letter;
}

const CHINESE = new RegExp(
  "[\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b73f}\\u{2b740}-\\u{2b81f}" +
    "\\u{2b920}-\\u{2ceaf}\\u{2f800}-\\u{2fa1f}]", "u");

// ------------------------------------------------------------------------- signature

/** The files of an archive, its version and release number, if all of it is as it was signed.
 *
 * @throws {NotVerified} with the reason
 */
export async function verify(archive, { key, agent, release = 0 }) {
  const files = await unpack(archive);
  const trusted = await pinned(key);
  let envelopes;
  try {
    envelopes = JSON.parse(decode(files["signature.json"]));
  } catch {
    throw new NotVerified("there is no readable signature.json: it is not signed");
  }
  const model = await statement(envelopes.model, trusted, "stillhouse model");
  const released = await statement(envelopes.release, trusted, "stillhouse release");
  if ([model.agent, model.name, released.agent].some((name) => name !== agent)) {
    throw new NotVerified(`it is signed as ${model.name} of agent ${model.agent}, not of agent ${agent}`);
  }
  if (typeof model.version !== "string" || model.version !== released.version) {
    throw new NotVerified(`version ${model.version} is not what was released: that is version ${released.version}`);
  }
  if (!Number.isSafeInteger(released.number) || released.number < Math.max(1, release)) {
    throw new NotVerified(`version ${model.version} was withdrawn: release ${release} was seen here already`);
  }
  const prefix = `${model.payload}/`;
  const signed = Object.entries(model.files).filter(([path]) => path.startsWith(prefix));
  const expected = new Map(signed.map(([path, digest]) => [path.slice(prefix.length), digest]));
  const names = Object.keys(files).filter((name) => name !== "signature.json");
  if (!expected.size || names.length !== expected.size) throw new NotVerified("it holds other files than were signed");
  for (const name of names) {
    if ((await sha256(files[name])) !== expected.get(name)) throw new NotVerified(`${name} is not as it was signed`);
  }
  return { files, version: `${agent}@${model.version}`, number: released.number };
}

async function statement(envelope, trusted, type) {
  let outer;
  try {
    outer = JSON.parse(envelope);
    outer.signature = bytesOf(outer.signature);
    outer.message = new TextEncoder().encode(`stillhouse signature 1\n${outer.statement}`);
  } catch {
    throw new NotVerified("its signature cannot be read: it is damaged");
  }
  if (outer.key !== trusted.id) throw new NotVerified(`it is signed by key ${outer.key}, not by ${trusted.id}`);
  if (!(await crypto.subtle.verify("Ed25519", trusted.key, outer.signature, outer.message))) {
    throw new NotVerified(`its signature is not that of key ${trusted.id}: it was altered`);
  }
  const content = JSON.parse(outer.statement);
  if (content.type !== type) throw new NotVerified(`the signed text is no statement about a ${type.split(" ")[1]}`);
  return content;
}

async function pinned(pem) {
  const der = bytesOf(pem.replace(/-----[A-Z ]+-----/g, "").replace(/\s/g, ""));
  const key = await crypto.subtle.importKey("spki", der, "Ed25519", false, ["verify"]);
  return { key, id: (await sha256(der.slice(-32))).slice(0, 16) };
}

/** Files by name. Only plain files pass, each name once. */
async function unpack(archive) {
  const tar = await gunzip(archive);
  const files = {};
  for (let at = 0; at + 512 <= tar.length && tar[at]; ) {
    const field = (from, to) => decode(tar.slice(at + from, at + to)).replace(/\0.*$/s, "");
    const [name, size, type] = [field(0, 100), parseInt(field(124, 136), 8), field(156, 157)];
    if (!/^[\w.-]+$/.test(name) || name === "__proto__" || Object.hasOwn(files, name) || !["0", ""].includes(type)) {
      throw new NotVerified(`${JSON.stringify(name)} is no plain file, or is in it twice`);
    }
    files[name] = tar.slice(at + 512, at + 512 + size);
    if (!(size >= 0) || files[name].length !== size) throw new NotVerified("it is cut off");
    at += 512 * (1 + Math.ceil(size / 512));
  }
  return files;
}

async function gunzip(archive) {
  const parts = [];
  let total = 0;
  try {
    for await (const part of new Blob([archive]).stream().pipeThrough(new DecompressionStream("gzip"))) {
      if ((total += part.length) > MAX_BYTES) throw new NotVerified(`it unpacks to more than ${MAX_BYTES} bytes`);
      parts.push(part);
    }
  } catch (error) {
    throw error instanceof NotVerified ? error : new NotVerified("it cannot be read as .tar.gz");
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const decode = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);
const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const sha256 = async (bytes) =>
  Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
