package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/braidnet/braid/internal/source/manifest"
)

// Action says what became of one object of a manifest.
type Action string

// What Apply, Delete and AddObjects do to objects.
const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
	Deleted    Action = "deleted"
)

// Change is one object of a manifest and what became of it.
type Change struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Action    Action `json:"action"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"` // 1-based
}

// String prints "Kind namespace/name created".
func (c Change) String() string {
	name := c.Name
	if c.Namespace != "" {
		name = c.Namespace + "/" + c.Name
	}
	return fmt.Sprintf("%s %s %s", c.Kind, name, c.Action)
}

// Report says what Apply or Delete did.
type Report struct {
	Changes  []Change `json:"changes"`            // in the order of the file
	Ignored  []string `json:"ignored,omitempty"`  // kinds that are not needed here: "ServiceAccount (11)", sorted
	Warnings []string `json:"warnings,omitempty"` // "file:line: …"
}

// Apply creates the objects of a manifest, or changes those that are there. A document that is
// broken or refused leaves the last good version of its object in force and affects no other; the
// error joins one error for each of them, which begins with file:line. Pods are started in the
// background: see Wait.
func (c *Controller) Apply(ctx context.Context, file string, data []byte) (Report, error) {
	return c.each(ctx, file, data, func(o object) (Action, []string, error) { return c.put(o) })
}

// Delete removes the objects that a manifest names; a Namespace goes with everything in it. Objects
// that are not there are errors, which do not keep the others from going.
func (c *Controller) Delete(ctx context.Context, file string, data []byte) (Report, error) {
	return c.each(ctx, file, data, func(o object) (Action, []string, error) { return Deleted, nil, c.remove(o) })
}

// AddObjects is Apply for objects that come from a program, such as the Service of the cluster's DNS.
func (c *Controller) AddObjects(objs ...runtime.Object) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, r := range objs {
		o, ok := r.DeepCopyObject().(object)
		if _, err := gvkOf(r); err != nil || !ok {
			errs = append(errs, fmt.Errorf("add %T: the playground does not take this kind", r))
			continue
		}
		if err := settle(o); err != nil {
			errs = append(errs, fmt.Errorf("add %s %s: %w", kindOf(o), keyOf(o), err))
			continue
		}
		if _, _, err := c.put(o); err != nil {
			errs = append(errs, fmt.Errorf("add %s %s: %w", kindOf(o), keyOf(o), err))
		}
	}
	return errors.Join(append(errs, c.sync())...)
}

// each parses a manifest and does something to each of its objects.
func (c *Controller) each(ctx context.Context, file string, data []byte, do func(object) (Action, []string, error)) (Report, error) {
	docs, broken := manifest.Parse(file, data, known)
	var errs []*manifest.Error
	errs = append(errs, broken...)
	var report Report
	ignored := map[string]int{}

	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range docs {
		if err := ctx.Err(); err != nil {
			return report, errors.Join(err, c.sync())
		}
		d := &docs[i]
		for _, w := range d.Warnings {
			report.Warnings = append(report.Warnings, w.Error())
		}
		o, ok := d.Object.(object)
		if !ok {
			ignored[d.Kind]++
			continue
		}
		if err := settle(o); err != nil {
			errs = append(errs, at(d, err))
			continue
		}
		action, notes, err := do(o)
		if err != nil {
			errs = append(errs, at(d, err))
			continue
		}
		for _, n := range notes {
			report.Warnings = append(report.Warnings, d.At("", errors.New(n)).Error())
		}
		report.Changes = append(report.Changes, Change{Kind: kindOf(o), Namespace: o.GetNamespace(), Name: o.GetName(),
			Action: action, File: file, Line: d.Line})
	}
	for kind, n := range ignored {
		report.Ignored = append(report.Ignored, fmt.Sprintf("%s (%d)", kind, n))
	}
	slices.Sort(report.Ignored)
	return report, errors.Join(joined(errs), c.sync())
}

// at gives an error its place in the manifest.
func at(d *manifest.Document, err error) *manifest.Error {
	if f := (*fieldError)(nil); errors.As(err, &f) {
		return d.At(f.path, err)
	}
	return d.At("", err)
}

// joined sorts errors by line, as a reader of the file meets them.
func joined(errs []*manifest.Error) error {
	sort.SliceStable(errs, func(i, j int) bool { return errs[i].Line < errs[j].Line })
	out := make([]error, len(errs))
	for i, e := range errs {
		out[i] = e
	}
	return errors.Join(out...)
}

// settle gives an object the namespace it is in, drops what only a server writes (objects that were
// exported from a cluster carry it), and refuses names that the API server would refuse: they become
// parts of file names.
func settle(o object) error {
	o.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{}) // the folder writes the one it knows
	o.SetManagedFields(nil)
	o.SetResourceVersion("")
	o.SetGeneration(0)
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	if clusterWide(o) {
		o.SetNamespace("")
	} else if o.GetNamespace() == "" {
		o.SetNamespace("default")
	}
	if ns := o.GetNamespace(); ns != "" {
		if bad := validation.IsDNS1123Label(ns); len(bad) > 0 {
			return complain("metadata.namespace", "%q is no name of a namespace: %s", ns, strings.Join(bad, "; "))
		}
	}
	check := validation.IsDNS1123Subdomain
	switch kindOf(o) {
	case "Namespace", "Service", "StatefulSet":
		check = validation.IsDNS1123Label // the name becomes one label of DNS names
	}
	if bad := check(o.GetName()); len(bad) > 0 {
		return complain("metadata.name", "%q is no name of a %s: %s", o.GetName(), kindOf(o), strings.Join(bad, "; "))
	}
	return nil
}
