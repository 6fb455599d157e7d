"use strict";
// Shows the data of the page: one search and some choices for all tables, and an order for each of them.

const page = JSON.parse(document.getElementById("data").textContent);
const orders = page.tables.map(() => ({ column: -1, descending: false }));
const chosen = {};
// A table of more rows is shown in part until there is a filter.
const MOST_ROWS = 2000;

const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

// What a cell is searched for, and what it is sorted by.
function wordsOf(cell) {
  if (cell === null) return "";
  return typeof cell === "string" ? cell : cell.length === 2 && typeof cell[1] === "string" ? cell[1] : "";
}

function orderOf(cell, kind) {
  if (cell === null) return kind === "text" || kind === "choice" ? "" : -Infinity;
  if (kind === "number") return cell[0];
  // The further right the last bar, the worse.
  if (kind === "bars") return cell.reduce((most, count, place) => (count > 0 ? place : most), -1);
  return cell;
}

// The rows of a table that hold all words of the query and what was chosen.
function rowsOf(table, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return table.rows.filter((row) => {
    const text = row.map(wordsOf).join(" ").toLowerCase();
    const holds = (column, place) => !chosen[column.name] || row[place] === chosen[column.name];
    return words.every((word) => text.includes(word)) && table.columns.every(holds);
  });
}

function sorted(rows, table, order) {
  if (order.column < 0) return rows;
  const kind = table.columns[order.column].kind;
  const of = (row) => orderOf(row[order.column], kind);
  const compare = (a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0);
  return [...rows].sort((a, b) => (order.descending ? compare(b, a) : compare(a, b)));
}

function cellHtml(cell, column) {
  const name = `data-name="${escaped(column.name)}"`;
  if (cell === null) return `<td ${name}></td>`;
  switch (column.kind) {
    case "number":
      return `<td ${name} class="number">${escaped(wordsOf(cell))}</td>`;
    case "bars": {
      const most = Math.max(...cell, 1);
      const bar = (count) => (count ? `<i style="height:${4 + (96 * count) / most}%"></i>` : `<i class="none"></i>`);
      const title = escaped(cell.join(", "));
      return `<td ${name}><span class="bars" role="img" title="${title}" aria-label="${title}">${cell.map(bar).join("")}</span></td>`;
    }
    case "command":
      return `<td ${name}><span class="command"><code title="${escaped(cell)}">${escaped(cell)}</code><button type="button" data-copy="${escaped(cell)}">copy</button></span></td>`;
    default: {
      const state = cell === "FAILED" ? ' class="bad"' : cell === "equal" ? ' class="good"' : "";
      return `<td ${name}${state}>${escaped(cell)}</td>`;
    }
  }
}

function tableHtml(table, place, query) {
  const order = orders[place];
  const rows = sorted(rowsOf(table, query), table, order);
  const heading = (column, at) => {
    const arrow = order.column !== at ? "" : order.descending ? " ↓" : " ↑";
    const title = `title="${escaped(column.meaning)}"`;
    return `<th scope="col" ${title}><button type="button" data-table="${place}" data-column="${at}">${escaped(column.name)}${arrow}</button></th>`;
  };
  const body = rows.slice(0, MOST_ROWS).map((row) => `<tr>${row.map((cell, at) => cellHtml(cell, table.columns[at])).join("")}</tr>`);
  const meanings = table.columns.filter((column) => column.meaning);
  const legend = meanings.map((column) => `<p class="note"><b>${escaped(column.name)}</b>: ${escaped(column.meaning)}</p>`);
  const more = rows.length > MOST_ROWS ? `<p class="note">and ${rows.length - MOST_ROWS} more rows; filter them</p>` : "";
  return `<section><h2>${escaped(table.title)} <small class="note">${rows.length} of ${table.rows.length}</small></h2>
<p class="note">${escaped(table.note)}</p>
${legend.length ? `<details><summary>what the columns say</summary>${legend.join("")}</details>` : ""}
<div class="scroll"><table><thead><tr>${table.columns.map(heading).join("")}</tr></thead><tbody>${body.join("\n")}</tbody></table></div>${more}</section>`;
}

function show() {
  const query = document.getElementById("query").value;
  // The address keeps the filter, so that it can be sent to others.
  history.replaceState(null, "", `#${encodeURIComponent(query)}`);
  document.getElementById("tables").innerHTML = page.tables.map((table, place) => tableHtml(table, place, query)).join("");
  const shown = page.tables.length ? rowsOf(page.tables[0], query).length : 0;
  document.getElementById("count").textContent = page.tables.length ? `${shown} of ${page.tables[0].rows.length} rows` : "";
}

function start() {
  const facts = page.facts.map(([name, value]) => `<li>${escaped(name)}: <b>${escaped(value)}</b></li>`);
  document.getElementById("head").innerHTML = `<h1>${escaped(page.title)}</h1>
<p class="summary ${page.good ? "good" : "bad"}">${escaped(page.summary)}</p><ul class="facts">${facts.join("")}</ul>`;
  const main = page.tables[0] ?? { columns: [], rows: [] };
  const choice = (column, place) => {
    const values = [...new Set(main.rows.map((row) => row[place]).filter(Boolean))];
    if (column.kind !== "choice" || values.length < 2) return "";
    const options = values.map((value) => `<option>${escaped(value)}</option>`).join("");
    return `<select data-choice="${escaped(column.name)}" aria-label="${escaped(column.name)}"><option value="">${escaped(column.name)}: all</option>${options}</select>`;
  };
  document.getElementById("choices").innerHTML = main.columns.map(choice).join("");
  document.getElementById("query").value = decodeURIComponent(location.hash.slice(1));
  document.getElementById("query").addEventListener("input", show);
  document.addEventListener("change", ({ target }) => {
    if (!target.dataset?.choice) return;
    chosen[target.dataset.choice] = target.value;
    show();
  });
  document.addEventListener("click", ({ target }) => {
    const { table, column, copy } = target.dataset ?? {};
    if (copy) copied(target, copy);
    if (column === undefined) return;
    const order = orders[table];
    order.descending = order.column === Number(column) && !order.descending;
    order.column = Number(column);
    show();
  });
  show();
}

function copied(button, text) {
  const done = () => { button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1500); };
  // A page that is opened as a file may have no clipboard; then the command is selected.
  const selected = () => getSelection().selectAllChildren(button.previousElementSibling);
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, selected); else selected();
}

start();
