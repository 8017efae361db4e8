// Tokens as vocabularies write them (byte for byte, with ▁ for a space, as <0x0A>), read back into text.

const BYTES = byteAlphabet();
const LITERALLY = new Map();
const BYTE = /^<0x([0-9A-F]{2})>$/; // a SentencePiece token for a byte of a character that has no token of its own
const encoder = new TextEncoder();

/**
 * The text of each token; � stands for part of a character that is spread over several.
 *
 * @param tokens As the tokenizer names them.
 * @param isSpecial Says which of them are no text, and stay as they are.
 */
export function pieces(tokens, isSpecial) {
  const named = tokens.map((token) => token ?? ""); // a model may have more ids than its tokenizer has names
  const read = (alphabet) => named.map((token) => (isSpecial(token) ? null : bytesOf(token.replaceAll("▁", " "), alphabet)));
  const bytes = [BYTES, LITERALLY].map(read).find(isText) ?? read(LITERALLY);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return named.map((token, place) => (bytes[place] === null ? token : decoder.decode(bytes[place])));
}

/** Byte-level vocabularies (GPT-2's and its heirs') write each byte as a character: its own, or one after U+00FF if it has none. */
function byteAlphabet() {
  const isWritten = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  const found = new Map();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) found.set(String.fromCodePoint(isWritten(byte) ? byte : next++), byte);
  return found;
}

function bytesOf(token, alphabet) {
  const byte = BYTE.exec(token);
  if (byte) return Uint8Array.of(Number.parseInt(byte[1], 16));
  return Uint8Array.from([...token].flatMap((character) => alphabet.get(character) ?? [...encoder.encode(character)]));
}

/** Whether the bytes are UTF-8, but for half a character that truncation may have left at either end. */
function isText(read) {
  const bytes = read.filter(Boolean).flatMap((found) => [...found]);
  const begin = bytes.findIndex((byte) => (byte & 0xc0) !== 0x80);
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes.slice(Math.max(begin, 0))), { stream: true });
    return true;
  } catch {
    return false;
  }
}
