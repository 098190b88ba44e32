package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/rig"
)

// Of what there are times.
const (
	add = iota
	del
	addAtOnce
	delAtOnce
	kinds
)

// subject is a chain of plugins on a node.
type subject struct {
	name    string
	plugins func(dir string) []any

	node  *netns.NS
	cni   *libcni.CNIConfig
	list  *libcni.NetworkConfigList
	ports bool
	pods  int // that there were
	mu    sync.Mutex
	times [kinds][]time.Duration
}

type object = map[string]any

// ranges are 1,000 addresses and as many as wanted of IPv6.
var ranges = []any{[]any{object{"subnet": "10.244.0.0/22"}}, []any{object{"subnet": "fd00:10:244::/64"}}}

func ours(dir string) []any {
	return []any{object{"type": "braid", "capabilities": object{"portMappings": true}, "ipam": object{"ranges": ranges, "dataDir": dir}}}
}

func routed(plugins []any) []any {
	plugins[0].(object)["mode"] = "routed"
	return plugins
}

func reference(dir string) []any {
	return []any{
		object{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipam": object{"type": "host-local", "ranges": ranges, "dataDir": dir}},
		object{"type": "portmap", "capabilities": object{"portMappings": true}},
	}
}

// flannel is the reference chain as flannel's plugin makes it up of the lease that flannel has written down.
func flannel(dir string) []any {
	return []any{
		object{"type": "flannel", "subnetFile": dir + ".env", "dataDir": dir + ".flannel", "ipam": object{"dataDir": dir},
			"delegate": object{"bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true}},
		object{"type": "portmap", "capabilities": object{"portMappings": true}},
	}
}

// lease is what flannel writes down: the ranges, and that flannel masquerades.
const lease = `FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.0.1/22
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
`

// start makes the node.
func (s *subject) start(o *options, ports bool) (err error) {
	s.ports = ports
	dir, err := os.MkdirTemp(o.dir, "node-")
	if err != nil {
		return err
	}
	data, err := json.Marshal(object{"cniVersion": "1.0.0", "name": "bench", "plugins": s.plugins(filepath.Join(dir, "addresses"))})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "addresses.env"), []byte(lease), 0o644); err != nil {
		return err
	}
	if s.list, err = libcni.ConfListFromBytes(data); err != nil {
		return err
	}
	s.cni = libcni.NewCNIConfigWithCacheDir([]string{o.dir}, filepath.Join(dir, "cache"),
		&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}}) // flannel's plugin tells all it does; errors come otherwise
	if err := rig.Namespaces(&s.node); err != nil {
		return err
	}
	return s.node.Do(rig.Router)
}

func (s *subject) stop() { _ = s.node.Close() }

// pod is a pod that has no network yet.
type pod struct {
	ns *netns.NS
	rt *libcni.RuntimeConf
}

func (s *subject) pod() (*pod, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	s.pods++
	p := &pod{ns: ns, rt: &libcni.RuntimeConf{ContainerID: fmt.Sprintf("pod-%d", s.pods), NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", fmt.Sprintf("pod-%d", s.pods)}}}}
	if s.ports {
		p.rt.CapabilityArgs = object{"portMappings": []object{{"hostPort": 20000 + s.pods%1000, "containerPort": 80, "protocol": "tcp"}}}
	}
	return p, nil
}

// timed calls the plugins on the node.
func (s *subject) timed(kind int, call func() error) error {
	return s.node.Do(func() error {
		began := time.Now()
		err := call()
		took := time.Since(began)
		if kind < kinds {
			s.mu.Lock()
			s.times[kind] = append(s.times[kind], took)
			s.mu.Unlock()
		}
		return err
	})
}

func (s *subject) add(ctx context.Context, p *pod, kind int) error {
	return s.timed(kind, func() error { _, err := s.cni.AddNetworkList(ctx, s.list, p.rt); return err })
}

func (s *subject) del(ctx context.Context, p *pod, kind int) error {
	return s.timed(kind, func() error { return s.cni.DelNetworkList(ctx, s.list, p.rt) })
}

// single lets one pod come and go.
func (s *subject) single(ctx context.Context, counts bool) error {
	p, err := s.pod()
	if err != nil {
		return err
	}
	defer p.ns.Close()
	a, d := add, del
	if !counts {
		a, d = kinds, kinds
	}
	if err := s.add(ctx, p, a); err != nil {
		return err
	}
	return s.del(ctx, p, d)
}

// burst lets n pods come at once, and then go at once.
func (s *subject) burst(ctx context.Context, n int) error {
	pods := make([]*pod, n)
	for i := range pods {
		p, err := s.pod()
		if err != nil {
			return err
		}
		defer p.ns.Close()
		pods[i] = p
	}
	together := func(call func(*pod) error) error {
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i, p := range pods {
			wg.Go(func() { errs[i] = call(p) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	if err := together(func(p *pod) error { return s.add(ctx, p, addAtOnce) }); err != nil {
		return err
	}
	return together(func(p *pod) error { return s.del(ctx, p, delAtOnce) })
}
