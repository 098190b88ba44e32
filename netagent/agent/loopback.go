package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/service"
)

// loopbackAudit is how often the routes to the backends of node ports are looked at again.
const loopbackAudit = 30 * time.Second

// loopbackOpen is the value by which our route_localnet is known from one that others have set. For the kernel
// whatever is not 0 means the same.
var loopbackOpen = strconv.Itoa(desired.RouteProtocol)

// loopbackRoutes lets the kernel route connections of the node itself from loopback addresses to the backends
// of node ports: by the devices that lead to these, and no others. The guard in the rules
// (service.Net.Loopback) has to be in force before.
type loopbackRoutes struct {
	h    *netlink.Handle
	log  *slog.Logger
	kick func()

	mu       sync.Mutex
	guarded  bool
	backends map[service.Key][]netip.Addr // of node ports, IPv4
}

func newLoopbackRoutes(log *slog.Logger) (*loopbackRoutes, error) {
	h, err := link.OpenAt(-1)
	if err != nil {
		return nil, err
	}
	return &loopbackRoutes{h: h, log: log, kick: func() {}, backends: map[service.Key][]netip.Addr{}}, nil
}

func (r *loopbackRoutes) close() { r.h.Close() }

// replaced says that the kernel has these frontends, and the guard.
func (r *loopbackRoutes) replaced(all []service.Frontend) {
	r.mu.Lock()
	clear(r.backends)
	r.guarded = true
	r.mu.Unlock()
	r.applied(service.Delta{Set: all})
	r.kick()
}

// applied says that the kernel has a change.
func (r *loopbackRoutes) applied(d service.Delta) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := false
	for _, k := range d.Delete {
		delete(r.backends, k)
	}
	for i := range d.Set {
		f := &d.Set[i]
		if f.Kind != service.NodePort || !f.Addr.Is4() {
			continue
		}
		var list []netip.Addr
		for _, b := range slices.Concat(f.Backends, f.Inside) {
			list = append(list, b.Addr())
		}
		changed = changed || !slices.Equal(r.backends[f.Key], list)
		r.backends[f.Key] = list
	}
	if changed {
		r.kick()
	}
}

func (r *loopbackRoutes) step(context.Context) (reconcile.Outcome, error) {
	r.mu.Lock()
	guarded, addrs := r.guarded, map[netip.Addr]struct{}{}
	for _, list := range r.backends {
		for _, a := range list {
			addrs[a] = struct{}{}
		}
	}
	r.mu.Unlock()
	if !guarded {
		return reconcile.Outcome{Summary: "waits for the guard of loopback addresses"}, nil
	}
	want, err := r.devices(addrs)
	if err != nil {
		return reconcile.Outcome{}, err
	}
	changes, err := setLoopback(want)
	for _, c := range changes {
		r.log.Info(c)
	}
	out := reconcile.Outcome{Changes: changes, Summary: "node ports on 127.0.0.1, by no device"}
	if len(want) > 0 {
		out.Summary = "node ports on 127.0.0.1, by " + strings.Join(want, ", ")
	}
	return out, err
}

// devices lists those by which the addresses are reached, sorted. Where there is no route there is nothing to open.
func (r *loopbackRoutes) devices(addrs map[netip.Addr]struct{}) ([]string, error) {
	t, err := link.ReadTable(r.h)
	if err != nil {
		return nil, err
	}
	var names []string
	for a := range addrs {
		routes, err := r.h.RouteGet(a.AsSlice())
		if err != nil {
			continue
		}
		for i := range routes {
			if name := t.Name(routes[i].LinkIndex); name != "" && name != "lo" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// setLoopback lets the kernel route loopback addresses by these devices, and takes back what we allowed others.
func setLoopback(want []string) (changes []string, err error) {
	names, err := sysctl.List("net/ipv4/conf")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		key := "net/ipv4/conf/" + name + "/route_localnet"
		have, err := sysctl.Get(key)
		if err != nil {
			continue // the device is gone
		}
		wanted := slices.Contains(want, name)
		switch {
		case wanted && have == "0":
			_, err = sysctl.Set(key, loopbackOpen)
			changes = append(changes, "loopback addresses are routed by "+name+" (route_localnet)")
		case !wanted && have == loopbackOpen:
			_, err = sysctl.Set(key, "0")
			changes = append(changes, "loopback addresses are no longer routed by "+name)
		}
		if err != nil {
			return changes, fmt.Errorf("node ports on 127.0.0.1: %w", err)
		}
	}
	return changes, nil
}
