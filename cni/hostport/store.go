package hostport

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
)

// TakenError says that another pod has the port.
type TakenError struct {
	Port   Port
	Holder tables.Owner
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("host port %s belongs to %s (%s): delete that pod, or use another hostPort or hostIP", e.Port, e.Holder, e.Holder.Link)
}

// Store is the host ports of the node that the calling thread's network namespace is of. Any number of
// processes may use it.
type Store struct {
	Log *slog.Logger
	// Alive tells whether the node has a link.
	Alive func(link string) (bool, error)
}

// Add gives owner the host ports of mappings, for a pod with these addresses: all of them or, on an
// error, none. What else owner holds goes. So does an element in the way whose link is gone, left by a pod
// that was never deleted; when the link is there the error is a *TakenError.
func (s *Store) Add(owner tables.Owner, mappings []Mapping, pod []netip.Addr) error {
	want, err := rules(mappings, pod)
	if err != nil {
		return err
	}
	var gone []rule
	err = Tables.Edit(func(have tables.Contents) (ops []desired.NFTOp, err error) {
		gone = nil
		for i, list := 0, Tables(); i < len(list); i++ {
			f := list[i].Family
			add := elements(owner, of(f, want))
			keep, drop, err := without(have, f, func(e desired.NFTElement) (bool, error) { return yields(f, e, owner, add, s.Alive) })
			if err != nil {
				return nil, err
			}
			gone = append(gone, drop...)
			ops = append(ops, have.Change(&list[i], append(keep, add...), len(add) > 0)...)
		}
		return ops, nil
	})
	switch {
	case errors.Is(err, tables.ErrNone):
		return fmt.Errorf("host ports need nftables: %w", err)
	case err != nil:
		return err
	}
	s.forget(append(gone, want...), want)
	return nil
}

// Remove takes away every host port of a link, and what it has in other tables, and says how many elements that were. It
// is no error when there are none.
func (s *Store) Remove(link string, others ...tables.Group) (removed int, err error) {
	taken, err := tables.Take(link, append(others, Tables)...)
	var gone []rule
	for _, t := range taken {
		if r, ok := parse(t.Family, t.NFTElement); ok && t.Table == TableName {
			gone = append(gone, r)
		}
	}
	s.forget(gone, nil)
	return len(taken), err
}

// Missing says what is not in the kernel of what Add with the same arguments put there.
func (s *Store) Missing(owner tables.Owner, mappings []Mapping, pod []netip.Addr) (missing []string, err error) {
	want, err := rules(mappings, pod)
	if err != nil || len(want) == 0 {
		return nil, err
	}
	conn, err := tables.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := Tables.Read(conn)
	if err != nil {
		return nil, err
	}
	for i, list := 0, Tables(); i < len(list); i++ {
		t, f := &list[i], list[i].Family
		mine := of(f, want)
		if len(mine) == 0 {
			continue
		}
		if text := tables.Damage(t, have[f]); text != "" {
			missing = append(missing, fmt.Sprintf("nftables table %s %s: %s", f, TableName, text))
		}
		for _, r := range mine {
			if !have.Holds(f, r.element(owner)) {
				missing = append(missing, fmt.Sprintf("host port %s does not lead to %s", r.host, r.pod))
			}
			if !have.Holds(f, r.hairpin(owner)) {
				missing = append(missing, fmt.Sprintf("%s cannot reach itself by host port %s", r.pod.Addr(), r.host))
			}
		}
	}
	return missing, nil
}

func of(f desired.NFTFamily, list []rule) []rule {
	return slices.DeleteFunc(slices.Clone(list), func(r rule) bool { return r.family != f })
}

// elements is what makes rules of one family true.
func elements(owner tables.Owner, list []rule) (out []desired.NFTElement) {
	for _, r := range list {
		for _, e := range []desired.NFTElement{r.element(owner), r.hairpin(owner)} {
			if !slices.ContainsFunc(out, func(o desired.NFTElement) bool { return tables.Same(e, o) }) {
				out = append(out, e)
			}
		}
	}
	return out
}

// yields tells whether an element in the kernel has to go when owner adds his.
func yields(f desired.NFTFamily, e desired.NFTElement, owner tables.Owner, add []desired.NFTElement, alive func(string) (bool, error)) (bool, error) {
	holder := tables.OwnerOf(e)
	if holder.Link == owner.Link {
		return true, nil
	}
	if !slices.ContainsFunc(add, func(o desired.NFTElement) bool { return tables.Same(e, o) }) {
		return false, nil
	}
	if e.Set == setHairpins {
		return true, nil // the address is owner's, so whoever had it is gone
	}
	live, err := alive(holder.Link)
	if live && err == nil {
		r, _ := parse(f, e)
		err = &TakenError{r.host, holder}
	}
	return true, err
}

// without parts the elements of a family into those to keep and those to go, of which it returns the ports.
func without(have tables.Contents, f desired.NFTFamily, goes func(desired.NFTElement) (bool, error)) (keep []desired.NFTElement, ports []rule, err error) {
	if have[f] == nil {
		return nil, nil, nil
	}
	for _, e := range have[f].Elements {
		drop, err := goes(e)
		if err != nil {
			return nil, nil, err
		}
		if !drop {
			keep = append(keep, e)
		} else if r, ok := parse(f, e); ok {
			ports = append(ports, r)
		}
	}
	return keep, ports, nil
}
