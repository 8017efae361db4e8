// Making elements and saying numbers. Texts only ever become text nodes: nothing that a person or the server wrote is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (or attributes, where there is no such property) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** An SVG element with attributes and children. */
export function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A score as people read it: three decimals, or powers of ten where those say nothing. */
export function number(value) {
  const size = Math.abs(value);
  const text = size && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : value.toFixed(3);
  return text.replaceAll("-", "−");
}

/** A count with its noun: 1 token, 1,234 tokens. */
export function count(size, noun) {
  return `${size.toLocaleString("en")} ${noun}${size === 1 ? "" : "s"}`;
}

/** The beginning of a text, with no character cut in two. */
export function beginning(text, characters) {
  const found = [...text.slice(0, 2 * characters)];
  return found.length > characters || text.length > 2 * characters ? `${found.slice(0, characters).join("")}…` : text;
}
