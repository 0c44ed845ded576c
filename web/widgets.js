/**
 * Access to a node's widgets, and extension of its callbacks.
 */

/**
 * @param {object} node
 * @param {string} name
 * @returns {object | undefined}
 */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/**
 * Call `then` after the method `name` of `owner`, if it has one.
 * @param {object} owner
 * @param {string} name
 * @param {Function} then
 */
export function after(owner, name, then) {
  const before = owner[name];
  owner[name] = function (...args) {
    const result = before?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}
