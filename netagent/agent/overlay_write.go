package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/neigh"
	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/route"
	"github.com/braidnet/braid/internal/kernel/sysctl"
)

// writer brings the kernel to a planned network and keeps account of it.
type writer struct {
	h       *netlink.Handle
	ns      *netns.NS // of h and of the calling thread
	table   *link.Table
	failed  map[string]bool // devices that could not be made: what belongs on them is not tried
	changes []string
	errs    []error
}

// forwarding makes the node route packets of the families its pods have.
func (w *writer) forwarding(cidrs []netip.Prefix) {
	for _, c := range cidrs {
		name := sysctl.Forwarding(c.Addr().Is4())
		changed, err := sysctl.Set(name, "1")
		if err != nil {
			w.errs = append(w.errs, err)
		} else if changed {
			w.changes = append(w.changes, fmt.Sprintf("set sysctl %s to 1: pod CIDR %s of this node", name, c))
		}
	}
}

// enableIPv6 switches IPv6 on where addresses of it are wanted: managers of networks switch it off on devices that they
// take for theirs, and new devices begin as the machine's default says.
func (w *writer) enableIPv6(addrs []desired.Addr) {
	for _, a := range addrs {
		if a.Prefix.Addr().Is4() || w.failed[a.Dev] {
			continue
		}
		name := "net/ipv6/conf/" + a.Dev + "/disable_ipv6"
		changed, err := sysctl.Set(name, "0")
		if err != nil && !errors.Is(err, os.ErrNotExist) { // without the file the address says what is missing
			w.errs = append(w.errs, err)
		} else if changed {
			w.changes = append(w.changes, fmt.Sprintf("set sysctl %s to 0: %s", name, a.Why()))
		}
	}
}

// links makes and repairs the wanted devices and reads the table again when that changed something.
func (w *writer) links(want []desired.Link) (err error) {
	before := len(w.changes)
	for _, l := range want {
		if w.failed[l.Name] {
			continue
		}
		done, err := link.Ensure(w.h, w.table, l)
		w.changes = append(w.changes, done...)
		if err != nil {
			w.errs = append(w.errs, err)
			w.failed[l.Name] = true
		}
	}
	if len(w.changes) > before {
		w.table, err = link.ReadTable(w.h)
	}
	return err
}

// sweepLinks deletes our devices that nothing wants, after what was on them has moved elsewhere.
func (w *writer) sweepLinks(want []desired.Link) {
	for _, d := range w.table.Ours {
		if slices.ContainsFunc(want, func(l desired.Link) bool { return l.Name == d.Name }) {
			continue
		}
		if err := link.DeleteLink(w.h, d); err != nil {
			w.errs = append(w.errs, err)
			continue
		}
		w.changes = append(w.changes, fmt.Sprintf("deleted %s: nothing wants it", d))
	}
}

// step is one edit, ready to run.
type step struct {
	text string
	why  string
	run  func() error
}

// steps are the edits of one kind of object: what is added or changed, and what is deleted.
type steps struct{ set, del []step }

// objects brings addresses, neighbours, forwarding entries and routes to the plan. Additions go
// bottom up, so that a route never leads to an unknown neighbour; deletions go top down after them.
func (w *writer) objects(ctx context.Context, net desired.Network) {
	wanted := map[string]bool{}
	for _, l := range net.Links {
		wanted[l.Name] = !w.failed[l.Name]
	}
	healthy := func(dev string) bool { return !w.failed[dev] }
	onWanted := func(dev string) bool { return wanted[dev] }
	t := w.table
	kinds := []steps{
		plan(w, net.Addrs, func(a desired.Addr) bool { return onWanted(a.Dev) }, func() (all []desired.Addr, err error) {
			for _, l := range net.Links {
				if onWanted(l.Name) {
					list, e := link.Addrs(w.h, t, l.Name)
					all, err = append(all, list...), errors.Join(err, e)
				}
			}
			return all, err
		}, link.ApplyAddr),
		plan(w, net.Neighs, func(n desired.Neigh) bool { return onWanted(n.Dev) }, func() ([]desired.Neigh, error) { return neigh.List(w.h, t) }, neigh.Apply),
		plan(w, net.FDB, func(f desired.FDB) bool { return onWanted(f.Dev) }, func() ([]desired.FDB, error) { return neigh.ListFDB(w.h, t) }, neigh.ApplyFDB),
		plan(w, net.Routes, func(r desired.Route) bool { return healthy(r.Dev) }, func() ([]desired.Route, error) { return route.List(w.h, t) }, route.Apply),
	}
	for _, k := range kinds {
		w.run(ctx, k.set)
	}
	slices.Reverse(kinds)
	for _, k := range kinds {
		w.run(ctx, k.del)
	}
}

// plan lists the edits of one kind, leaving out objects that concern does not hold for. When the
// kernel cannot be read there are none: writing blind could delete what is right.
func plan[T desired.Object[T, K], K comparable](w *writer, want []T, concern func(T) bool, list func() ([]T, error),
	apply func(*netlink.Handle, *link.Table, desired.Edit[T]) error) (out steps) {
	have, err := list()
	if err != nil {
		w.errs = append(w.errs, err)
		return steps{}
	}
	other := func(o T) bool { return !concern(o) }
	want, have = slices.DeleteFunc(slices.Clone(want), other), slices.DeleteFunc(have, other)
	for _, e := range desired.Diff(want, have) {
		s := step{text: desired.Text(e), run: func() error { return apply(w.h, w.table, e) }}
		if e.New == nil {
			out.del = append(out.del, s)
			continue
		}
		s.why = (*e.New).Why()
		out.set = append(out.set, s)
	}
	return out
}

func (w *writer) run(ctx context.Context, list []step) {
	for _, s := range list {
		if ctx.Err() != nil {
			w.errs = append(w.errs, fmt.Errorf("overlay: stopped in the middle: %w", context.Cause(ctx)))
			return
		}
		if err := s.run(); err != nil {
			if s.why != "" {
				err = fmt.Errorf("%w (%s)", err, s.why)
			}
			w.errs = append(w.errs, err)
			continue
		}
		w.changes = append(w.changes, s.text)
	}
}
