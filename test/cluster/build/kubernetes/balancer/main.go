// Command balancer is the cloud of a cluster on one machine: it gives Services of type LoadBalancer addresses,
// and routes these from the control plane's network, where it runs, to the nodes. What clouds share, such as
// finalizers and status, is Kubernetes' own service controller.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/cloud-provider/controllers/service"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "credentials for the API server")
	pools := flag.String("pools", "198.51.100.0/24,2001:db8:1::/112", "address ranges, one of each family")
	clients := flag.String("clients", "192.0.2.1,2001:db8:2::1", "what who asks from here comes from, one of each family")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *pools, *clients); err != nil {
		fmt.Fprintln(os.Stderr, "balancer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, pools, clients string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	c, err := newCloud(ctx, pools, clients)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 10*time.Minute)
	controller, err := service.New(c, client, factory.Core().V1().Services(), factory.Core().V1().Nodes(), "cluster", utilfeature.DefaultFeatureGate)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	controller.Run(ctx, 4, controllersmetrics.NewControllerManagerMetrics("balancer"))
	return nil
}

// pool hands out addresses in turn, so that one that was given back is not used again soon.
type pool struct {
	prefix netip.Prefix
	last   netip.Addr
	used   map[netip.Addr]bool
}

func newPool(s string) (*pool, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, err
	}
	return &pool{prefix: p, last: p.Addr(), used: map[netip.Addr]bool{}}, nil
}

func (p *pool) take() (netip.Addr, error) {
	for a := p.last.Next(); a != p.last; a = a.Next() {
		if !p.prefix.Contains(a) {
			a = p.prefix.Addr()
			continue
		}
		if !p.used[a] {
			p.used[a], p.last = true, a
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all addresses of %s are in use", p.prefix)
}
