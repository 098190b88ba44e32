//go:build cgo && amd64

// Command flannel runs one of flannel's own backends on one node: `flannel udp` is what flanneld does with
// that backend, without a cluster. Nodes find each other by files: each writes its lease into a folder and
// takes up those of the others. It builds with cgo only, because flannel's udp backend is written in C.
//
//	flannel --dir leases --name n1 --iface eth0 --subnet 10.244.1.0/24 udp
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/udp"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("flannel", flag.ContinueOnError)
	dir := f.String("dir", "", "folder of leases")
	name := f.String("name", "", "name of this node's lease")
	iface := f.String("iface", "eth0", "device of the underlay")
	network := f.String("network", "10.244.0.0/16", "range of all pods")
	own := f.String("subnet", "", "range of this node's pods")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || *dir == "" || *name == "" {
		return errors.New("usage: flannel --dir DIR --name NODE --subnet CIDR udp|vxlan")
	}
	m := &leases{dir: *dir, name: *name}
	config, err := subnet.ParseConfig(fmt.Sprintf(`{"Network":%q,"Backend":{"Type":%q}}`, *network, f.Arg(0)))
	if err != nil {
		return err
	}
	m.config = config
	if err := m.own.UnmarshalJSON([]byte(`"` + *own + `"`)); err != nil {
		return fmt.Errorf("subnet: %w", err)
	}
	ext, err := external(*iface)
	if err != nil {
		return err
	}
	be, err := backend.NewManager(ctx, m, ext).GetBackend(f.Arg(0))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	n, err := be.RegisterNetwork(ctx, &wg, config)
	if err != nil {
		return err
	}
	n.Run(ctx)
	return nil
}

// external describes the underlay's device, by its first IPv4 address.
func external(name string) (*backend.ExternalInterface, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("iface %s: %w", name, err)
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if p, ok := a.(*net.IPNet); ok && p.IP.To4() != nil {
			return &backend.ExternalInterface{Iface: i, IfaceName: name, IfaceAddr: p.IP, ExtAddr: p.IP}, nil
		}
	}
	return nil, fmt.Errorf("iface %s has no IPv4 address", name)
}

// leases is flannel's view of the cluster, kept in files NAME.json.
type leases struct {
	dir, name string
	own       ip.IP4Net
	config    *subnet.Config
}

// AcquireLease writes this node's lease.
func (m *leases) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	l := &lease.Lease{EnableIPv4: true, Subnet: m.own, Attrs: *attrs, Expiration: time.Now().Add(24 * time.Hour)}
	data, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	tmp := filepath.Join(m.dir, m.name+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return nil, err
	}
	return l, os.Rename(tmp, filepath.Join(m.dir, m.name+".json"))
}

// WatchLeases tells of leases that come and go, until ctx ends.
func (m *leases) WatchLeases(ctx context.Context, to chan []lease.LeaseWatchResult) error {
	defer close(to)
	known := map[string]lease.Lease{}
	for {
		events, err := m.changes(known)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			to <- []lease.LeaseWatchResult{{Events: events}}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *leases) changes(known map[string]lease.Lease) (events []lease.Event, err error) {
	files, err := filepath.Glob(filepath.Join(m.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, f := range files {
		there[f] = true
		if _, ok := known[f]; ok || strings.TrimSuffix(filepath.Base(f), ".json") == m.name {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		l := lease.Lease{EnableIPv4: true}
		if err := json.Unmarshal(data, &l); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		known[f] = l
		events = append(events, lease.Event{Type: lease.EventAdded, Lease: l})
	}
	for f, l := range known {
		if !there[f] {
			delete(known, f)
			events = append(events, lease.Event{Type: lease.EventRemoved, Lease: l})
		}
	}
	return events, nil
}

// The rest of flannel's interface, which the backends do not use.

func (m *leases) GetNetworkConfig(context.Context) (*subnet.Config, error) { return m.config, nil }

func (m *leases) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return nil
}

func (m *leases) RenewLease(context.Context, *lease.Lease) error { return nil }

func (m *leases) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return nil
}

func (m *leases) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error { return nil }

func (m *leases) GetStoredMacAddresses(context.Context) (string, string) { return "", "" }

func (m *leases) GetStoredPublicIP(context.Context) (string, string) { return "", "" }

func (m *leases) Name() string { return "files" }
