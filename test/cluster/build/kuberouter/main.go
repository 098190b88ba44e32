// Command kuberouter is kube-router as `make bench-policy` measures it beside Braid: its own flags and its own Run, with a
// client that speaks protobuf, as the bench's API server does. It is never linked into Braid.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/cloudnativelabs/kube-router/v2/pkg/cmd"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	klog.InitFlags(nil)
	config := options.NewKubeRouterConfig()
	config.AddFlags(pflag.CommandLine)
	pflag.Parse()
	if err := errors.Join(flag.Set("logtostderr", "true"), flag.Set("v", config.VLevel), run(config)); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(config *options.KubeRouterConfig) error {
	c, err := clientcmd.BuildConfigFromFlags(config.Master, config.Kubeconfig)
	if err != nil {
		return err
	}
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return err
	}
	return (&cmd.KubeRouter{Client: client, Config: config}).Run()
}
