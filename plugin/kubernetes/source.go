package kubernetes

import (
	"context"
	"os"

	"k8s.io/client-go/rest"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/internal/source/dir"
	"github.com/braidnet/braid/internal/source/kube"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

// runSource reads a source into a store until ctx ends; it is the registry's Run.
func runSource(ctx context.Context, src stores.Source, kinds []model.Kind, store *model.Store) error {
	if src.Manifests != "" {
		return dir.Run(ctx, src.Manifests, store, dir.Options{Logger: logger})
	}
	cfg, err := restConfig(src)
	if err != nil {
		return err
	}
	selectors := map[model.Kind]kube.Selector{}
	for kind, labels := range src.Selectors() {
		selectors[kind] = kube.Selector{Labels: labels}
	}
	// The addresses of pods that have ended may be other pods' by now: such pods need not even be sent.
	selectors[model.KindPod] = kube.Selector{Labels: selectors[model.KindPod].Labels, Fields: "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"}
	return kube.Run(ctx, cfg, store, kube.Options{
		Kinds: kinds, Logger: logger, Selectors: selectors, Trim: names.Trim, MaxInflight: src.MaxInflight, Listing: lists.of(store),
		CheckEvery: src.CheckEvery, Checked: func(kind model.Kind, differed int, err error) { countCheck(src, kind, differed, err) },
	})
}

// sourceError says why a source cannot work, as far as that is known before it is tried.
func sourceError(src stores.Source) error {
	if src.Manifests == "" {
		_, err := restConfig(src)
		return err
	}
	_, err := os.Stat(src.Manifests)
	return err
}

func restConfig(src stores.Source) (*rest.Config, error) {
	cfg, err := baseConfig(src)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = src.QPS, src.Burst
	return cfg, nil
}

func baseConfig(src stores.Source) (*rest.Config, error) {
	if src.Endpoint != "" {
		return &rest.Config{
			Host:            src.Endpoint,
			TLSClientConfig: rest.TLSClientConfig{CertFile: src.CertFile, KeyFile: src.KeyFile, CAFile: src.CAFile},
		}, nil
	}
	return kube.Config(src.Kubeconfig, src.Context)
}
